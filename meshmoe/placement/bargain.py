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
    by_layer: dict[int, dict[tuple[int, int], tuple[int, int]]] = {}
    for position, (lot, price) in enumerate(zip(lots, prices, strict=True)):
        size = int(layer_bytes[lot.layer])
        # Rounded up, what is freed is rounded down: a settlement that fits in units fits in bytes.
        change = (
            -((len(lot.one_drops) - len(lot.one_adds)) * size // unit),
            -((len(lot.two_drops) - len(lot.two_adds)) * size // unit),
        )
        if max(abs(change[0]), abs(change[1])) > REACH_UNITS:
            continue
        alternatives = by_layer.setdefault(lot.layer, {})
        if price > alternatives.get(change, (-(1 << 62), 0))[0]:
            alternatives[change] = (price, position)
    side = 2 * REACH_UNITS + 1
    best = np.full((side, side), -(1 << 60), np.int64)
    best[REACH_UNITS, REACH_UNITS] = 0
    taken: list[tuple[Ints, list[tuple[tuple[int, int], int]]]] = []
    for layer in sorted(by_layer):
        options = [((0, 0), -1)]
        table, pick = best.copy(), np.zeros((side, side), np.int64)
        for change, (price, position) in sorted(by_layer[layer].items()):
            shifted = np.full_like(best, -(1 << 60))
            (to_0, from_0), (to_1, from_1) = _window(change[0], side), _window(change[1], side)
            shifted[to_0, to_1] = best[from_0, from_1] + price
            better = shifted > table
            table[better], pick[better] = shifted[better], len(options)
            options.append((change, position))
        best = table
        taken.append((pick, options))
    limit = [min(REACH_UNITS, max(-REACH_UNITS, room // unit)) + REACH_UNITS for room in room_bytes]
    allowed = best[: limit[0] + 1, : limit[1] + 1]
    at = list(np.unravel_index(int(allowed.argmax()), allowed.shape))
    if allowed[at[0], at[1]] <= 0:
        return []
    chosen = []
    for pick, options in reversed(taken):
        change, position = options[pick[at[0], at[1]]]
        at = [at[0] - change[0], at[1] - change[1]]
        if position >= 0:
            chosen.append(position)
    return sorted(chosen)


def _window(shift: int, side: int) -> tuple[slice, slice]:
    """Where cells go, and where they come from, when everything is shifted."""
    if shift >= 0:
        return slice(shift, side), slice(0, side - shift)
    return slice(0, side + shift), slice(-shift, side)
