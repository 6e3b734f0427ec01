"""SmartMoE: balance the load, without copies."""

from __future__ import annotations

from meshmoe.placement.policies.base import cover, demands, no_holders, pack, spread_slots
from meshmoe.placement.world import Holders, World


class SmartMoE:
    """Every layer's experts, most called first, each to the node with the least load so far.

    Source: the online placement of SmartMoE (Zhai et al., USENIX ATC 2023), whose search over parallel strategies has
    no counterpart here. Adaptation: load and number of experts are measured by a node's capacity.
    """

    name = "SmartMoE"

    def place(self, world: World) -> Holders:
        """One holder for every expert."""
        holders, demand = no_holders(world), demands(world)
        slots = spread_slots(world, world.capacity_bytes)
        total = demand.sum(axis=0)
        for layer in range(world.shape.layers):
            count = int(world.shape.exists[layer].sum())
            for node, experts in enumerate(pack(total[layer, :count], slots[:, layer])):
                holders[node, layer, experts] = True
        return cover(world, holders, demand)
