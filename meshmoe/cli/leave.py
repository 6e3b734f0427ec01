"""``meshmoe leave``: the node of this box hands over what only it holds, then stops."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from meshmoe.api.error_reading import NoNodeError, raise_if_error
from meshmoe.cli.client import NodeClient
from meshmoe.cli.options import socket_option
from meshmoe.node.leave_progress import LeaveProgress


@click.command()
@socket_option
def leave(socket_path: Path) -> None:
    """Hand the experts that only this node holds to others, then stop it."""
    console = Console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with (
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar,
        NodeClient(socket_path).post("/mesh/leave") as lines,
    ):
        task = bar.add_task("leaving", total=None)
        for line in lines:
            step = msgspec.json.decode(line)
            raise_if_error(step)
            if "done" in step:
                break
            progress = msgspec.convert(step, LeaveProgress)
            bar.update(
                task, description=progress.text, total=progress.total, completed=progress.total - progress.remaining
            )
            if not console.is_terminal:
                click.echo(f"{progress.total - progress.remaining}/{progress.total} {progress.text}")
        else:
            raise NoNodeError("the node went away before it had handed everything over")
    click.echo("this node has left the mesh")
