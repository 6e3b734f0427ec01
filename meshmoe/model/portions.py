"""Which experts of a model a box fetches, where a whole model is more than it has room for."""

from __future__ import annotations

import re

from meshmoe.core.config import Capacity
from meshmoe.core.errors import ConfigError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.model.layout import Layout
from meshmoe.placement.guardian import rendezvous_scores

PARTS_MAX = 1024

_PART = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?/(\d{1,4})\Z", re.ASCII)


def parse_part(text: str) -> tuple[int, int, int]:
    """Read ``2/3`` (the second of three parts) or ``2-3/4`` (the second and third of four).

    Returns:
        First and last part, counted from 1, and how many there are.

    Raises:
        ConfigError: It is neither.
    """
    match = _PART.match(text.strip())
    if match is not None:
        first, last, count = int(match[1]), int(match[2] or match[1]), int(match[3])
        if 1 <= first <= last <= count <= PARTS_MAX:
            return first, last, count
    raise ConfigError(f"part {text!r}: write the second of three parts as 2/3, the second and third of four as 2-3/4")


def experts_of_part(layout: Layout, part: tuple[int, int, int]) -> frozenset[ExpertId]:
    """The experts of one or several parts; all parts together are all experts, and no two have any in common."""
    first, last, count = part
    # Layer by layer another part begins, so that parts are alike also where a layer does not divide evenly.
    return frozenset(e for e in layout.experts() if first <= 1 + (e.index + e.layer) % count <= last)


def experts_that_fit(layout: Layout, capacity: Capacity, node: NodeId) -> frozenset[ExpertId]:
    """As many experts as fit a capacity: those that a mesh is most likely to give this node before it knows its use."""
    experts = layout.experts()
    room_bytes = capacity.resolve(sum(layout.layer_of(expert).expert_bytes for expert in experts))
    scores = rendezvous_scores(experts, [node], [1])[:, 0]
    chosen = set()
    for _, expert in sorted(zip(-scores, experts, strict=True)):
        room_bytes -= layout.layer_of(expert).expert_bytes
        if room_bytes < 0:
            break
        chosen.add(expert)
    return frozenset(chosen)
