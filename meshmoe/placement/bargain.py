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
from meshmoe.placement.table import Mask
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
    if not lots:
        return []
    unit = int(layer_bytes.max())
    layers = np.fromiter((lot.layer for lot in lots), np.int64, len(lots))
    one = np.fromiter((len(lot.one_drops) - len(lot.one_adds) for lot in lots), np.int64, len(lots))
    two = np.fromiter((len(lot.two_drops) - len(lot.two_adds) for lot in lots), np.int64, len(lots))
    # Rounded up, what is freed is rounded down: a settlement that fits in units fits in bytes.
    one, two = -(one * layer_bytes[layers] // unit), -(two * layer_bytes[layers] // unit)
    losses = -np.array(prices, np.int64)
    order = np.lexsort((two, one, losses, layers))
    order = order[np.maximum(abs(one), abs(two))[order] <= REACH_UNITS]
    options = np.column_stack([losses, one, two, np.arange(len(lots))])[order]
    worthy = _worthy(layers[order], options)
    if not worthy.any():
        return []
    firsts = np.append(np.flatnonzero(np.diff(layers[order][worthy], prepend=-1)), worthy.sum())
    limits = [min(REACH_UNITS, max(-REACH_UNITS, room // unit)) for room in room_bytes]
    flat = options[worthy]
    return sorted(int(flat[i, 3]) for i in _choose(firsts, flat, limits[0], limits[1], REACH_UNITS))


@compiled
def _worthy(layers: Ints, options: Ints) -> Mask:
    """Without those for which another of the layer, or none, brings as much for as few bytes at either end.

    Options of a layer stand together, the best price first.
    """
    worthy = np.zeros(len(layers), np.bool_)
    first = 0
    for number in range(len(layers)):
        if layers[number] != layers[first]:
            first = number
        loss, one, two = options[number, 0], options[number, 1], options[number, 2]
        worthy[number] = loss < 0 or one < 0 or two < 0
        for other in range(first, number):
            if worthy[other] and options[other, 1] <= one and options[other, 2] <= two:
                worthy[number] = False
                break
    return worthy


@compiled
def _choose(firsts: Ints, options: Ints, limit_one: int, limit_two: int, reach: int) -> Ints:
    """The knapsack: rows of ``options`` (minus the price, change at one, change at two) to take, one a layer at most.

    Cells are the changes of bytes so far, each from ``-reach`` to ``reach``; only those in reach are looked at.
    What was taken is found on the way back: the first option of each layer that leads to its cell.
    """
    side, none = 2 * reach + 1, np.int64(-(1 << 62))
    tables = np.empty((len(firsts), side, side), np.int64)
    tables[0] = none
    tables[0, reach, reach] = 0
    low_one = high_one = low_two = high_two = reach
    for layer in range(len(firsts) - 1):
        best, table = tables[layer], tables[layer + 1]
        table[:] = best
        to = np.array([low_one, high_one, low_two, high_two])
        for option in range(firsts[layer], firsts[layer + 1]):
            loss, one, two = options[option, 0], options[option, 1], options[option, 2]
            first, last = max(low_two, -two), min(high_two, side - 1 - two) + 1
            for i in range(max(low_one, -one), min(high_one, side - 1 - one) + 1):
                if first >= last:
                    break
                # As slices, so that the loop below is one over neighbours in memory: three times as fast.
                now, then = best[i, first:last], table[i + one, first + two : last + two]
                for j in range(last - first):
                    gain = now[j] - loss if now[j] > none else none
                    then[j] = gain if gain > then[j] else then[j]
            to[0] = min(to[0], max(0, low_one + one))
            to[1] = max(to[1], min(side - 1, high_one + one))
            to[2] = min(to[2], max(0, low_two + two))
            to[3] = max(to[3], min(side - 1, high_two + two))
        low_one, high_one, low_two, high_two = to[0], to[1], to[2], to[3]
    best = tables[len(firsts) - 1]
    at_one, at_two = reach, reach
    most = np.int64(0)
    for i in range(low_one, min(high_one, limit_one + reach) + 1):
        for j in range(low_two, min(high_two, limit_two + reach) + 1):
            if best[i, j] > most:
                most, at_one, at_two = best[i, j], i, j
    chosen, count = np.empty(len(firsts) - 1, np.int64), 0
    if most > 0:
        for layer in range(len(firsts) - 2, -1, -1):
            before, found = tables[layer], tables[layer + 1, at_one, at_two]
            if before[at_one, at_two] == found:
                continue
            for option in range(firsts[layer], firsts[layer + 1]):
                i, j = at_one - options[option, 1], at_two - options[option, 2]
                inside = 0 <= i < side and 0 <= j < side
                if inside and before[i, j] > none and before[i, j] - options[option, 0] == found:
                    chosen[count] = option
                    count += 1
                    at_one, at_two = i, j
                    break
    return chosen[:count]
