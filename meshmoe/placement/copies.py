"""A node's own choice: which copies it keeps in the room that ownership leaves it."""

from __future__ import annotations

from typing import NamedTuple

from meshmoe.placement.outlook import Outlook
from meshmoe.placement.pricing import Pricer, fill
from meshmoe.placement.table import Mask, Table


class Copies(NamedTuple):
    """A better choice than the present one.

    Attributes:
        held: ``[layers, experts]``, everything to hold.
        gain: Seconds a second.
    """

    held: Mask
    gain: float


def better_copies(
    outlook: Outlook, node: int, table: Table, capacity_bytes: int, move_s: float, gain_min: float
) -> Copies | None:
    """Choose copies anew.

    Args:
        outlook: What the node believes; its own row tells what it holds and owns now.
        node: Its position.
        table: Its demand.
        capacity_bytes: Its budget.
        move_s: Seconds a second that bringing in one byte costs, over the horizon.
        gain_min: The least gain, as a share of the node's cost.

    Returns:
        None unless it is clearly better, even if others lose what they may by copies that go.
    """
    sizes, now, owned = outlook.shape.expert_bytes, outlook.holders[node], outlook.owned(node)
    room_bytes = capacity_bytes - int(sizes[owned].sum())
    if room_bytes < sizes[sizes > 0].min(initial=capacity_bytes + 1):
        return None
    pricer = Pricer(outlook.shape, table, outlook.branches(node))
    held = fill(pricer, owned, room_bytes)
    cost = pricer.total(now)
    others = float((outlook.regret(node) * (now & ~held)).sum())
    gain = cost - pricer.total(held) - others - float(sizes[held & ~now].sum()) * move_s
    return Copies(held, gain) if gain > gain_min * cost else None
