"""The steps of a leave, for people to watch."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from meshmoe.core.units import format_size
from meshmoe.node.custody_driver import CustodyDriver
from meshmoe.node.leave_progress import LeaveProgress
from meshmoe.node.mesh import Mesh

LEAVE_TIMEOUT_S = 600.0
"""How long a leaving node hands over at most: 30 GiB at a gigabit. Custody itself gives up much earlier if nobody takes
anything any more."""


async def hand_over(custody: CustodyDriver, mesh: Mesh) -> AsyncIterator[LeaveProgress]:
    """Give every expert in custody to another node; ends when that is done, or nobody takes any more."""
    custody.leave()
    deadline_s = trio.current_time() + LEAVE_TIMEOUT_S
    while custody.leave_finished is None:
        with trio.move_on_at(deadline_s) as scope:  # no yield in here: a scope must not outlive its task's step
            await custody.wait_leave_news()
        if scope.cancelled_caught:
            break
        step = custody.leave_progress
        yield LeaveProgress(step.total - step.done, step.total, "others take over what this node keeps")
    finished = custody.leave_finished
    if finished is not None and finished.kept:
        (expert, reason), total = finished.kept[0], custody.leave_progress.total
        short_bytes = custody.machine.missing_bytes if custody.machine is not None and mesh.serving() else 0
        why = f"the others lack {format_size(short_bytes)} of capacity" if short_bytes else f"{expert}: {reason}"
        text = f"{len(finished.kept)} experts could not be handed over ({why})"
        yield LeaveProgress(len(finished.kept), total, text)
