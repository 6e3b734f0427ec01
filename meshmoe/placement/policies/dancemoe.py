"""DanceMoE as published: a central scheduler that knows all nodes' activation counts."""

from __future__ import annotations

import numpy as np

from meshmoe.placement.policies.base import cover, demands, layer_bytes, no_holders
from meshmoe.placement.trace import Floats, Ints
from meshmoe.placement.world import Holders, World


class DanceMoE:
    """Experts a layer by entropy, then the most called ones, then repair of coverage.

    Source: DanceMoE (arXiv 2508.12851), its two algorithms. First each node's slots are shared over the layers in
    proportion to the entropy of its activations there: where use is spread, more experts are needed for the same
    coverage; a layer that would not get one slot for each of its experts takes slots from the layer with the largest
    surplus. Then each node takes the experts that it calls most. Last, an expert that nobody took replaces, on the node
    with the most duplicates, the duplicate that is called least there.

    Where the paper is silent: fractions of slots go to the largest remainders, and slots are moved between layers on
    the largest node first.
    """

    name = "DanceMoE"

    def place(self, world: World) -> Holders:
        """Every node full."""
        demand = demands(world)
        share = demand / np.maximum(demand.sum(axis=2, keepdims=True), 1e-300)
        counts = self._counts(world, share)
        holders = no_holders(world)
        for node in range(len(world.nodes)):
            for layer in range(world.shape.layers):
                exists = world.shape.exists[layer]
                order = np.argsort(np.where(exists, -share[node, layer], np.inf), kind="stable")
                holders[node, layer, order[: counts[node, layer]]] = True
        for layer in range(world.shape.layers):
            self._repair(world, layer, holders, share)
        return cover(world, holders, demand)  # only where a layer had too few slots for its experts

    def _counts(self, world: World, share: Floats) -> Ints:
        sizes, experts = layer_bytes(world.shape), world.shape.exists.sum(axis=1)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(axis=2)
        counts = np.zeros(entropy.shape, np.int64)
        for node, capacity in enumerate(world.capacity_bytes):
            weight = entropy[node] if entropy[node].sum() > 0 else np.ones(world.shape.layers)
            wanted = capacity * (weight / weight.sum()) / sizes
            counts[node] = np.minimum(np.floor(wanted), experts)
            room = int(capacity) - int(counts[node] @ sizes)
            while True:
                able = (counts[node] < experts) & (sizes <= room)
                if not able.any():
                    break
                layer = int(np.where(able, wanted - counts[node], -np.inf).argmax())
                counts[node, layer] += 1
                room -= int(sizes[layer])
        by_size = np.argsort(-world.capacity_bytes, kind="stable")
        for layer in range(world.shape.layers):
            while counts[:, layer].sum() < experts[layer]:
                surplus = counts.sum(axis=0) - experts
                for other in np.argsort(-surplus, kind="stable"):
                    if surplus[other] <= 0:
                        return counts
                    able = [
                        n
                        for n in by_size
                        if counts[n, other] > 0 and counts[n, layer] < experts[layer] and sizes[layer] <= sizes[other]
                    ]
                    if able:
                        counts[able[0], other] -= 1
                        counts[able[0], layer] += 1
                        break
                else:
                    return counts
        return counts

    def _repair(self, world: World, layer: int, holders: Holders, share: Floats) -> None:
        held = holders[:, layer]
        missing = set(np.flatnonzero(world.shape.exists[layer] & ~held.any(axis=0)).tolist())
        while missing:
            duplicates = held & (held.sum(axis=0) > 1)
            node = int(duplicates.sum(axis=1).argmax())
            if not duplicates[node].any():
                return
            held[node, np.where(duplicates[node], share[node, layer], np.inf).argmin()] = False
            expert = max(sorted(missing), key=lambda e: share[node, layer, e])
            held[node, expert] = True
            missing.discard(expert)
