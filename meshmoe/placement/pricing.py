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
from itertools import pairwise

import numpy as np

from meshmoe.placement.compiled import compiled
from meshmoe.placement.cost import Branches
from meshmoe.placement.table import Mask, Table, away, eliminate, price_sets
from meshmoe.placement.trace import Floats, Ints
from meshmoe.placement.world import ModelShape


class Pricer:
    """Prices a node's sets, given where else experts can be had."""

    def __init__(self, shape: ModelShape, table: Table, branch: Branches) -> None:
        """Price every slot once.

        Args:
            shape: The model.
            table: The node's demand and means (`meshmoe.placement.table.tabulate`).
            branch: Its way to every expert elsewhere (`meshmoe.placement.cost.branches`).
        """
        self.shape, self._table = shape, table
        remote_s, wire_s = away(table, shape.row_bytes, branch)
        self._slots = (
            table.first_step,
            table.first_slot,
            table.expert,
            table.local_s,
            remote_s,
            wire_s,
            table.rates,
        )

    def cost(self, layers: int | Ints, held: Mask) -> Floats:
        """Seconds a second that layers cost with these sets: ``[...]`` for ``held`` ``[..., experts]``.

        Args:
            layers: Of each set, or of all.
            held: The sets.
        """
        which = np.ascontiguousarray(np.broadcast_to(layers, held.shape[:-1]), np.int64).reshape(-1)
        prices: Floats = price_sets(*self._slots, which, np.ascontiguousarray(held).reshape(-1, held.shape[-1]))
        return prices.reshape(held.shape[:-1])

    def total(self, held: Mask) -> float:
        """Seconds a second of all layers with these sets: ``[layers, experts]``."""
        return float(self.cost(np.arange(self.shape.layers), held).sum())

    def eliminate(self, layer: int, start: Mask, keep: Mask) -> tuple[Ints, Floats]:
        """Remove experts from ``start``, least loss first, until ``keep`` is left.

        Args:
            layer: Of the experts.
            start: ``[experts]``.
            keep: ``[experts]``, a subset.

        Returns:
            The experts in the order of removal, and the layer's cost before each removal and after the last.
        """
        ((order, rises),) = self._eliminate(np.array([layer]), start[None], keep[None])
        return order, float(self.cost(layer, start)) + np.concatenate([[0.0], np.cumsum(rises)])

    def orders(self, start: Mask, keep: Mask) -> list[Ints]:
        """The order of `eliminate` for every layer, of ``[layers, experts]``."""
        return [order for order, _ in self._eliminate(np.arange(self.shape.layers), start, keep)]

    def families(self, keep: Mask) -> list[Family]:
        """Nested sets of every layer: ``keep``, and up to all there is."""
        start, layers = self.shape.exists, np.arange(self.shape.layers)
        return [
            Family(order[::-1], (first + np.concatenate([[0.0], np.cumsum(rises)]))[::-1])
            for (order, rises), first in zip(
                self._eliminate(layers, start, keep), self.cost(layers, start).tolist(), strict=True
            )
        ]

    def _eliminate(self, layers: Ints, start: Mask, keep: Mask) -> list[tuple[Ints, Floats]]:
        table = self._table
        of_uses = table.first_use, table.uses, table.use_slot
        order, rises, firsts = eliminate(*self._slots, *of_uses, layers, start, keep)
        bounds = firsts.tolist()
        return [(order[a:b], rises[a:b]) for a, b in pairwise(bounds)]


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
    families = pricer.families(keep)
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
        best, pick = _with_family(best, family, units)
        picks.append(pick)
    left, chosen = capacity, []
    for pick, size in zip(reversed(picks), sizes[::-1], strict=True):
        count = int(pick[left])
        chosen.append(count)
        left -= count * -(-int(size) // unit)
    return chosen[::-1]


@compiled
def _with_family(best: Floats, family: Floats, units: int) -> tuple[Floats, Ints]:
    """The least costs by room with some of one family more, and how many of it that takes, the fewest if equal."""
    least, pick = best + family[0], np.zeros(len(best), np.int64)
    for count in range(1, min(len(family) - 1, (len(best) - 1) // units) + 1):
        for room in range(count * units, len(best)):
            if best[room - count * units] + family[count] < least[room]:
                least[room], pick[room] = best[room - count * units] + family[count], count
    return least, pick
