"""EPLB: DeepSeek's expert-parallel load balancer, for nodes of unequal capacity.

Source: github.com/deepseek-ai/EPLB (``eplb.py``). It makes copies of the most loaded experts until all slots are used
(``replicate_experts``: the next copy goes to the expert with the most load a copy), and packs copies onto devices so
that load is even (``balanced_packing``). The load is the sum over all nodes: who asks is not looked at.

Adaptations, ours: EPLB wants the same number of slots on each device and in each layer, while here a node's slots
follow its bytes (`spread_slots`), and loads are measured by slots. It also may put two copies of an expert on one
device, which would be no copy here; a copy goes to a node that has none yet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from meshmoe.placement.policies.base import balance, pack
from meshmoe.placement.trace import Floats, Ints
from meshmoe.placement.world import Holders, World

GROUPS = 8
"""Groups of experts in the hierarchical policy, as in DeepSeek-V3; fewer where a layer cannot be cut into so many."""


def replicate(load: Floats, slots: int, copies_max: int) -> Ints:
    """EPLB's ``replicate_experts``: how many copies each expert gets."""
    copies = np.ones(len(load), np.int64)
    for _ in range(slots - len(load)):
        share = np.where(copies < copies_max, load / copies, -1.0)
        if share.max() < 0:
            break
        copies[share.argmax()] += 1
    return copies


def place_copies(load: Floats, copies: Ints, held: NDArray[np.bool_], room: Ints) -> None:
    """Pack copies that are not placed yet, heaviest first, onto nodes without one; ``held`` ``[nodes, experts]``."""
    used = np.array([load[held[node]].sum() for node in range(len(room))])
    left = copies - held.sum(axis=0)
    share = load / copies
    for expert in np.argsort(-share, kind="stable"):
        for _ in range(left[expert]):
            able = [n for n in range(len(room)) if held[n].sum() < room[n] and not held[n, expert]]
            if not able:
                break
            node = min(able, key=lambda n: (used[n] / room[n], n))
            held[node, expert] = True
            used[node] += share[expert]


class GlobalEplb:
    """EPLB's global policy: copies and packing over all nodes at once (adapted to unequal capacity)."""

    name = "EPLB global"

    def place(self, world: World) -> Holders:
        """Every node full, as far as copies are of use."""
        return balance(world, _spread)


def _spread(load: Floats, slots: Ints, held: NDArray[np.bool_]) -> None:
    place_copies(load, replicate(load, int(slots.sum()), len(slots)), held, slots)


class HierarchicalEplb:
    """EPLB's hierarchical policy: whole groups of experts are packed onto nodes first, then copies are made.

    Adaptation: EPLB makes copies within a node, over its devices. A node here is one device, where a second copy is of
    no use, so the slots that the groups leave free take the most loaded experts of other nodes.
    """

    name = "EPLB hierarchical"

    def place(self, world: World) -> Holders:
        """Every node full, as far as copies are of use."""
        return balance(world, _spread_groups)


def _spread_groups(load: Floats, slots: Ints, held: NDArray[np.bool_]) -> None:
    groups = next(g for g in range(min(GROUPS, len(load)), 0, -1) if len(load) % g == 0)
    members = np.arange(len(load)).reshape(groups, -1)
    for node, packed in enumerate(pack(load[members].sum(axis=1), slots // members.shape[1])):
        held[node, members[packed].ravel()] = True
    copies = replicate(load, int(slots.sum()), len(slots))
    left_out = np.where(held.any(axis=0), 0, 1)  # groups that no node had whole room for are split
    place_copies(load, np.maximum(left_out, held.sum(axis=0)), held, slots)
    place_copies(load, np.maximum(copies, held.sum(axis=0)), held, slots)
