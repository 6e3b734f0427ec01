"""Before placement's first decision: compile what it needs, once a machine, beside whatever this process serves."""

from __future__ import annotations

import sys

import trio

PREPARE_S_MAX = 180.0
"""Then decisions begin all the same, and compile what they need by themselves."""


async def prepare() -> None:
    """Compile what decisions need, if this machine has not yet, in a process of low priority: it takes long."""
    with trio.move_on_after(PREPARE_S_MAX):
        command = [sys.executable, "-m", "meshmoe.placement.live.warm"]
        await trio.run_process(command, capture_stderr=True, check=False)
