"""Placements that know nothing of use."""

from __future__ import annotations

import numpy as np

from meshmoe.placement.policies.base import cover, no_holders, spread_slots
from meshmoe.placement.world import Holders, World


class Uniform:
    """Expert parallelism as frameworks do it: every layer cut into contiguous shares, no copies.

    Source: GShard (arXiv 2006.16668). Adaptation: shares follow capacities.
    """

    name = "uniform"

    def place(self, world: World) -> Holders:
        """One holder for every expert."""
        shape = world.shape
        holders = no_holders(world)
        slots = spread_slots(world, world.capacity_bytes)
        for layer in range(shape.layers):
            count = int(shape.exists[layer].sum())
            ends = np.round(np.cumsum(slots[:, layer]) * count / max(1, slots[:, layer].sum())).astype(int)
            for node, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                holders[node, layer, start : min(end, start + slots[node, layer])] = True
        return cover(world, holders, np.zeros(holders.shape))


class Redundance:
    """Uniform, with what memory is left filled by copies drawn at random.

    Source: the baseline of that name in DanceMoE (arXiv 2508.12851), as we read it: copies that do not look at use.
    """

    name = "redundance"

    def __init__(self, seed: int = 0) -> None:
        """Make copies repeatable."""
        self._seed = seed

    def place(self, world: World) -> Holders:
        """Every node full."""
        holders = Uniform().place(world)
        rng = np.random.default_rng(self._seed)
        sizes = world.shape.expert_bytes
        for node, capacity in enumerate(world.capacity_bytes):
            room = int(capacity) - int(sizes[holders[node]].sum())
            absent = np.argwhere(~holders[node] & world.shape.exists)
            for layer, expert in rng.permutation(absent):
                if sizes[layer, expert] <= room:
                    holders[node, layer, expert] = True
                    room -= int(sizes[layer, expert])
        return holders
