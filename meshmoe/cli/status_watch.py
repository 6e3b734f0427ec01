"""``meshmoe status --watch``: the status in place on a terminal, a line a second in a pipe.

The node sends a whole status first and then what has changed (`meshmoe.api.status_feed`), so that many watchers cost it
little.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live

from meshmoe.cli.client import NodeClient
from meshmoe.cli.status_heat import heat_map
from meshmoe.cli.status_view import status_console, status_parts
from meshmoe.core.units import format_duration
from meshmoe.node.status import NodeStatus


def watch_status(client: NodeClient, *, experts: bool, as_json: bool) -> None:
    """Show statuses until interrupted, or until the node goes.

    Raises:
        MeshmoeError: There is no node, or it went away.
    """
    console = status_console()
    statuses = watched(client)
    if as_json:
        for status in statuses:
            click.echo(msgspec.json.encode(status).decode())
    elif not console.is_terminal:
        for status in statuses:
            click.echo(one_line(status))
    else:
        # The screen's alternate buffer: a status may be longer than the window, and nothing is left behind.
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            for status in statuses:
                live.update(Group(*_parts(console, status, experts=experts)), refresh=True)


def watched(client: NodeClient) -> Iterator[NodeStatus]:
    """Statuses as they come."""
    shown: dict[str, Any] = {}
    for name, data in client.events("/mesh/events"):
        if name == "status":
            shown = data
        elif name == "patch":
            apply_patch(shown, data)
        else:
            continue  # a sample for the page, or of a later version
        yield msgspec.convert(shown, NodeStatus)


def apply_patch(shown: dict[str, Any], patch: dict[str, Any]) -> None:
    """Bring ``shown`` up to date; see `meshmoe.api.status_feed.merge_patch`."""
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(shown.get(name), dict):
            apply_patch(shown[name], value)
        else:
            shown[name] = value


def one_line(status: NodeStatus) -> str:
    """What matters most, for a log or another program's eyes."""
    serving, alive = status.serving, sum(peer.state == "alive" for peer in status.peers)
    parts = [
        time.strftime("%H:%M:%S"),
        f"{alive} of {len(status.peers)} nodes",
        "serving" if serving.ready else f"not serving ({serving.reason})",
        f"{serving.active} active",
        f"{serving.tokens_per_s_now:.1f} tok/s",
    ]
    if serving.hit_ratio is not None:
        parts.append(f"hit {serving.hit_ratio:.0%}")
    if serving.rounds_per_token is not None:
        parts.append(f"{serving.rounds_per_token:.2f} rounds")
    if serving.latency.token_ms_p99 is not None:
        parts.append(f"token p99 {format_duration(serving.latency.token_ms_p99 / 1000)}")
    if status.migrations:
        parts.append(f"{len(status.migrations)} moving")
    return "  ".join(parts)


def _parts(console: Console, status: NodeStatus, *, experts: bool) -> Iterator[RenderableType]:
    yield from heat_map(console, status) if experts else status_parts(console, status)
