"""Two nodes bargaining about who holds and who owns what: lots, their prices, and the settlement.

Every expert has one *owner* in the plan, who must hold it; whoever else holds it has a copy and may drop it. Ownership
passes only between the two ends of an exchange, so no exchange can leave an expert without a holder, whatever anybody's
view of the rest is: that is why exchange needs no agreement beyond two nodes.

A *lot* is a change within one layer that concerns two nodes: ownership that passes, copies made or dropped. Costs of
layers are independent, so if at most one lot a layer is taken, prices add up exactly. Each end prices all lots from its
own trace, which never leaves it. The *settlement* is the set of lots with the greatest total price that keeps both
byte budgets: a knapsack over layers with two budgets, solved by dynamic programming over integers (nanoseconds
a second; bytes in units), so both ends get the same result on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from meshmoe.core.messages import ExpertIndex, LayerIndex
from meshmoe.placement.compiled import compiled
from meshmoe.placement.trace import Ints

Indices = Annotated[tuple[ExpertIndex, ...], Meta(max_length=65536)]

REACH_UNITS = 64
"""How far either end's bytes may swing in the course of a settlement, in units of the largest expert."""

PRICE_SCALE = 1e9
"""Prices are integers: nanoseconds a second."""


class Lot(msgspec.Struct, frozen=True, array_like=True):
    """A change in one layer. *One* is the proposer, *two* its partner.

    Attributes:
        layer: Of the experts.
        to_one: Experts whose ownership passes from two to one; one holds them from then on.
        to_two: The other way round.
        one_adds, one_drops: Copies that one makes, or experts that it stops holding.
        two_adds, two_drops: The same for two.
    """

    layer: LayerIndex
    to_one: Indices = ()
    to_two: Indices = ()
    one_adds: Indices = ()
    one_drops: Indices = ()
    two_adds: Indices = ()
    two_drops: Indices = ()


def settle(
    lots: Sequence[Lot],
    prices: Sequence[int],
    layer_bytes: Ints,
    room_bytes: tuple[int, int],
) -> list[int]:
    """Choose lots: at most one a layer, within both budgets, of the greatest total price.

    Args:
        lots: All that are on the table.
        prices: Of each, both ends' together.
        layer_bytes: ``[layers]``, size of one expert of each.
        room_bytes: What each end has free now.

    Returns:
        Positions of the chosen lots, ascending; empty if nothing is worth while. The same on every machine.
    """
    unit = int(layer_bytes.max())
    by_layer: dict[int, list[tuple[int, int, int, int]]] = {}
    for position, (lot, price) in enumerate(zip(lots, prices, strict=True)):
        size = int(layer_bytes[lot.layer])
        # Rounded up, what is freed is rounded down: a settlement that fits in units fits in bytes.
        one = -((len(lot.one_drops) - len(lot.one_adds)) * size // unit)
        two = -((len(lot.two_drops) - len(lot.two_adds)) * size // unit)
        if max(abs(one), abs(two)) <= REACH_UNITS:
            by_layer.setdefault(lot.layer, []).append((-price, one, two, position))
    options = [_worthy(by_layer[layer]) for layer in sorted(by_layer)]
    options = [some for some in options if some]
    if not options:
        return []
    flat = np.array([option for some in options for option in some], np.int64)
    firsts = np.cumsum([0, *map(len, options)])
    limits = [min(REACH_UNITS, max(-REACH_UNITS, room // unit)) for room in room_bytes]
    return sorted(int(flat[i, 3]) for i in _choose(firsts, flat, limits[0], limits[1], REACH_UNITS))


def _worthy(options: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Without those for which another, or none, brings as much for as few bytes at either end; best price first."""
    kept = [(0, 0, 0, -1)]
    for option in sorted(options):
        if not any(k[0] <= option[0] and k[1] <= option[1] and k[2] <= option[2] for k in kept):
            kept.append(option)
    return kept[1:]


@compiled
def _choose(firsts: Ints, options: Ints, limit_one: int, limit_two: int, reach: int) -> Ints:
    """The knapsack: rows of ``options`` (minus the price, change at one, change at two) to take, one a layer at most.

    Cells are the changes of bytes so far, each from ``-reach`` to ``reach``; only those in reach are looked at.
    """
    side, none = 2 * reach + 1, np.int64(-(1 << 62))
    best = np.full((side, side), none)
    best[reach, reach] = 0
    low_one = high_one = low_two = high_two = reach
    picks = np.full((len(firsts) - 1, side, side), np.int32(-1))
    for layer in range(len(firsts) - 1):
        table, pick = best.copy(), picks[layer]
        to = np.array([low_one, high_one, low_two, high_two])
        for option in range(firsts[layer], firsts[layer + 1]):
            loss, one, two = options[option, 0], options[option, 1], options[option, 2]
            for i in range(max(low_one, -one), min(high_one, side - 1 - one) + 1):
                for j in range(max(low_two, -two), min(high_two, side - 1 - two) + 1):
                    if best[i, j] > none and best[i, j] - loss > table[i + one, j + two]:
                        table[i + one, j + two] = best[i, j] - loss
                        pick[i + one, j + two] = option
            to[0] = min(to[0], max(0, low_one + one))
            to[1] = max(to[1], min(side - 1, high_one + one))
            to[2] = min(to[2], max(0, low_two + two))
            to[3] = max(to[3], min(side - 1, high_two + two))
        best = table
        low_one, high_one, low_two, high_two = to[0], to[1], to[2], to[3]
    at_one, at_two = reach, reach
    most = np.int64(0)
    for i in range(low_one, min(high_one, limit_one + reach) + 1):
        for j in range(low_two, min(high_two, limit_two + reach) + 1):
            if best[i, j] > most:
                most, at_one, at_two = best[i, j], i, j
    chosen, count = np.empty(len(firsts) - 1, np.int64), 0
    if most > 0:
        for layer in range(len(firsts) - 2, -1, -1):
            option = picks[layer, at_one, at_two]
            if option >= 0:
                chosen[count] = option
                count += 1
                at_one -= options[option, 1]
                at_two -= options[option, 2]
    return chosen[:count]
