"""``meshmoe status``: the mesh as the node of this box sees it."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from meshmoe.cli.client import NodeClient
from meshmoe.cli.options import socket_option
from meshmoe.node.status import NodeStatus


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the status as the node gives it (docs/operations.md).")
@socket_option
def status(as_json: bool, socket_path: Path) -> None:
    """Show who is here, who holds what, what is missing and how fast it goes."""
    body = NodeClient(socket_path).get("/mesh/status")
    if as_json:
        click.echo((msgspec.json.format(body, indent=2) if sys.stdout.isatty() else body).decode())
        return
    from meshmoe.cli.status_view import show_status

    show_status(msgspec.json.decode(body, type=NodeStatus))
