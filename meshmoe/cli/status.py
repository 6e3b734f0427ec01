"""``meshmoe status``: the mesh as the node of this box sees it."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from meshmoe.cli.client import NodeClient
from meshmoe.cli.options import socket_option
from meshmoe.core.errors import ConfigError
from meshmoe.node.status import NodeStatus

_HELP = """Show who is here, who holds what, what is missing and how fast it goes.

\b
  meshmoe status                    once
  meshmoe status --watch            until Ctrl-C
  meshmoe status --experts          who holds which expert
  meshmoe status --graph mesh.svg   a picture: .svg, .png or .dot
  meshmoe status --json | jq .serving.rounds_per_token
"""


@click.command(help=_HELP)
@click.option("--watch", is_flag=True, help="Go on showing it, every second as it changes; a line a second in a pipe.")
@click.option("--experts", is_flag=True, help="Show the map of experts, layer by layer, by who holds them.")
@click.option(
    "--graph", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw the mesh: .svg, .png, .dot."
)
@click.option("--json", "as_json", is_flag=True, help="Print the status as the node gives it (docs/operations.md).")
@socket_option
def status(watch: bool, experts: bool, graph: Path | None, as_json: bool, socket_path: Path) -> None:  # noqa: D103
    if graph is not None and (watch or experts or as_json):
        raise ConfigError("--graph draws one picture: leave --watch, --experts and --json out")
    if experts and as_json:
        raise ConfigError("--json has the holders of every expert already: leave --experts out")
    client = NodeClient(socket_path)
    if watch:
        from meshmoe.cli.status_watch import watch_status

        watch_status(client, experts=experts, as_json=as_json)
        return
    body = client.get("/mesh/status")
    if as_json:
        click.echo((msgspec.json.format(body, indent=2) if sys.stdout.isatty() else body).decode())
        return
    decoded = msgspec.json.decode(body, type=NodeStatus)
    if graph is not None:
        from meshmoe.cli.drawing import save_graph
        from meshmoe.cli.status_graph import status_graph

        save_graph(status_graph(decoded), graph, f"The mesh as {decoded.node} sees it")
        return
    from meshmoe.cli.status_view import show_status

    show_status(decoded, experts=experts)
