"""Whom ``meshmoe join`` joins when it was told nobody: what discovery found, with a token where it takes one."""

from __future__ import annotations

import sys

import click
import trio
from rich.console import Console

from meshmoe.core.errors import JoinError
from meshmoe.node.discovery import Beacon


async def find_peer(beacon: Beacon, console: Console, *, member: bool) -> str | None:
    """A word for ``--peer``; None if this node is to begin a mesh.

    Args:
        beacon: Open.
        console: To tell what is found.
        member: Whether this node has been a member of a mesh and may need no token.

    Raises:
        JoinError: A mesh is there, but needs a token and nobody can be asked for it; or it is not clear which to join.
    """
    console.print("looking for a mesh on this network ...", style="dim")
    found = await beacon.find_mesh()
    if found is None:
        return None
    console.print(
        f"found a mesh that serves {found.model}: {found.node} at {found.address}", markup=False, highlight=False
    )
    if member or not found.needs_token:
        return found.address
    if not sys.stdin.isatty():
        raise JoinError(
            f"the mesh of {found.node} at {found.address} admits nobody without a token: `meshmoe status` there shows "
            "it, give it with --peer; --no-discovery begins a mesh of its own"
        )
    console.print(f"  it needs a token: `meshmoe status` on {found.node} shows it")
    asked = await trio.to_thread.run_sync(lambda: click.prompt("  token", err=True), abandon_on_cancel=True)
    return str(asked).strip().split()[-1]
