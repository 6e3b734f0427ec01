"""What sets of experts are worth to one node, from its own trace alone: the node's side of every bargain.

Layers do not influence each other (`meshmoe.placement.cost`), so a change is priced layer by layer and the prices add
up exactly. Within a layer nothing is additive: the twelfth expert of a layer may be worth more than the eleventh,
because a layer stops waiting only when *all* experts of a step are at home. So sets are priced, not experts, and the
order in which a node wants experts comes from *elimination*: start with everything, remove again and again the expert
whose loss is least. Read backwards, that is a nested family of sets, each good for its size. (Greedy growth would begin
blind: the first expert of an empty layer saves no round at all.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshmoe.placement.cost import Branches, LayerSteps, layer_steps
from meshmoe.placement.trace import Floats, Ints, Trace
from meshmoe.placement.world import ModelShape, NodeSpec

Mask = NDArray[np.bool_]


class Pricer:
    """Prices a node's sets, given where else experts can be had."""

    def __init__(self, shape: ModelShape, spec: NodeSpec, trace: Trace, branch: Branches) -> None:
        """Price every step once.

        Args:
            shape: The model.
            spec: The node's means.
            trace: Its demand.
            branch: Its way to every expert elsewhere (`meshmoe.placement.cost.branches`).
        """
        self.shape = shape
        self._parts: list[list[LayerSteps]] = [
            [
                layer_steps(spec, shape.row_bytes, steps, layer, branch.layer(layer))
                for steps in (trace.decode, trace.prefill)
                if len(steps)
            ]
            for layer in range(shape.layers)
        ]

    def cost(self, layer: int, held: Mask) -> Floats:
        """Seconds a second that a layer costs with these sets: ``[...]`` for ``held`` ``[..., experts]``."""
        padded = np.concatenate([held, np.ones((*held.shape[:-1], 1), bool)], axis=-1)
        total: Floats = np.zeros(held.shape[:-1])
        for part in self._parts[layer]:
            total = total + part.rate_cost(padded)
        return total

    def losses(self, layer: int, held: Mask) -> Floats:
        """What each held expert's removal would cost, seconds a second: ``[experts]``, 0 for those not held."""
        total = np.zeros(len(held) + 1)
        padded = np.append(held, True)
        for part in self._parts[layer]:
            here = padded[part.slots]
            gone = ~here
            computes = (part.local_s * here).sum(axis=1)
            waits = (part.remote_s * gone).max(axis=1)
            now = np.maximum(computes, waits)[:, None]
            then = np.maximum(computes[:, None] - part.local_s, np.maximum(waits[:, None], part.remote_s))
            loss = (then - now + part.wire_s) * part.rates[:, None]
            total += np.bincount(part.slots[here], loss[here], len(total))
        losses: Floats = total[:-1]
        return losses

    def eliminate(self, layer: int, start: Mask, keep: Mask) -> tuple[Ints, Floats]:
        """Remove experts from ``start``, least loss first, until ``keep`` is left.

        Args:
            layer: Of the experts.
            start: ``[experts]``.
            keep: ``[experts]``, a subset.

        Returns:
            The experts in the order of removal, and the layer's cost before each removal and after the last.
        """
        held = start.copy()
        removable = start & ~keep
        order = np.empty(int(removable.sum()), np.int64)
        costs = np.empty(len(order) + 1)
        costs[0] = self.cost(layer, held)
        for turn in range(len(order)):
            losses = self.losses(layer, held)
            worst = int(np.where(removable, losses, np.inf).argmin())
            order[turn] = worst
            costs[turn + 1] = costs[turn] + losses[worst]
            held[worst] = removable[worst] = False
        return order, costs


@dataclass(frozen=True, slots=True)
class Family:
    """A layer's nested sets: what must be held, and the rest in the order in which it is wanted.

    Attributes:
        wanted: Experts, the most wanted set's first.
        costs: ``[len(wanted) + 1]``, the layer's cost with the first so many of them.
    """

    wanted: Ints
    costs: Floats


def fill(pricer: Pricer, keep: Mask, room_bytes: int) -> Mask:
    """Choose what a node holds beside what it must: the best union of nested sets that fits.

    One family a layer by elimination, then a knapsack over their sizes, exact up to rounding of bytes to units.

    Args:
        pricer: The node's.
        keep: ``[layers, experts]``, what it must hold; not part of ``room_bytes``.
        room_bytes: For more.

    Returns:
        ``[layers, experts]``, with ``keep`` in it.
    """
    shape = pricer.shape
    sizes = shape.expert_bytes.max(axis=1)
    families = []
    for layer in range(shape.layers):
        order, costs = pricer.eliminate(layer, shape.exists[layer], keep[layer])
        families.append(Family(order[::-1], costs[::-1]))
    chosen = knapsack([family.costs for family in families], sizes, room_bytes)
    held = keep.copy()
    for layer, count in enumerate(chosen):
        held[layer, families[layer].wanted[:count]] = True
    return held


UNITS_MAX = 2048
"""Resolution of a knapsack, in parts of the room."""


def knapsack(costs: list[Floats], sizes: Ints, room: int) -> list[int]:
    """How many to take of each family, for the least total cost.

    Args:
        costs: For each family, the cost of taking none, one, two ...
        sizes: Of one item of each family.
        room: For all; sizes are rounded up to a unit of the smallest size, or of 1/2048 of the room if sizes differ.

    Returns:
        For each family, how many.
    """
    room = max(0, room)
    same = bool((sizes == sizes[0]).all())
    unit = int(sizes[0]) if same else max(1, room // UNITS_MAX)
    capacity = room // unit
    best = np.zeros(capacity + 1)
    picks: list[Ints] = []
    for family, size in zip(costs, sizes, strict=True):
        units = -(-int(size) // unit)
        counts = min(len(family) - 1, capacity // units)
        table = np.full((counts + 1, capacity + 1), np.inf)
        for count in range(counts + 1):
            table[count, count * units :] = best[: capacity + 1 - count * units] + family[count]
        pick = table.argmin(axis=0)
        picks.append(pick)
        best = np.take_along_axis(table, pick[None], axis=0)[0]
    left, chosen = capacity, []
    for pick, size in zip(reversed(picks), sizes[::-1], strict=True):
        count = int(pick[left])
        chosen.append(count)
        left -= count * -(-int(size) // unit)
    return chosen[::-1]
