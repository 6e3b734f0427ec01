"""What a bargain does to those who do not sit at it, from the demand of theirs that is known.

Where links are unequal, an expert that moves is nearer for some third nodes and farther for others. An upper bound of
what they lose is easily had from their demand an expert, but it is far too high (a set waits for its slowest branch
alone), it knows no gains, and so it forbids much of what would help all. With a bystander's table, or sketch, each lot
is priced as its own steps would pay for it: exactly, as costs of layers add up and a settlement takes one lot a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from meshmoe.placement.bargain import Lot
from meshmoe.placement.compiled import compiled
from meshmoe.placement.table import Mask, Table
from meshmoe.placement.trace import Floats, Ints

if TYPE_CHECKING:
    from meshmoe.placement.lots import Outlook

Marks = Sequence[tuple[Mask, Mask]]
"""For each end, what each lot adds and drops: ``[lots, experts]``."""


def others_pay(
    outlook: Outlook, ends: tuple[int, int], layers: Ints, marks: Marks, known: Mapping[int, Table]
) -> Floats:
    """Seconds a second that bystanders pay more with each lot: negative where they gain.

    Args:
        outlook: What is believed of the mesh.
        ends: Positions of the two who bargain.
        layers: Of each lot.
        marks: Of each end.
        known: Demand by position; that of the two ends is left out.
    """
    total: Floats = np.zeros(len(layers))
    for node, table in known.items():
        if node in ends:
            continue
        time_s = outlook.time_s[node]
        wire_s = 2 * outlook.shape.row_bytes * outlook.byte_s[node]
        far = int(time_s.argmax())
        for layer in np.unique(layers):
            first, last = table.first_step[layer : layer + 2]
            if first == last:
                continue
            of = np.flatnonzero(layers == layer)
            near_now, near = _nearest(outlook, ends, int(layer), [(a[of], d[of]) for a, d in marks], node, far)
            called = np.zeros(outlook.shape.experts, bool)
            called[table.expert[table.first_slot[first] : table.first_slot[last]]] = True
            called &= ~outlook.holders[node, layer]
            differ = ((time_s[near] != time_s[near_now]) & called).any(axis=1)
            if not differ.any():
                continue
            prices = _price(
                first,
                last,
                table.first_slot,
                table.expert,
                table.rows,
                table.local_s,
                table.rates,
                outlook.holders[node, layer],
                np.concatenate([near_now[None], near[differ]]),
                time_s - wire_s,
                wire_s,
                outlook.row_s,
            )
            total[of[differ]] += prices[1:] - prices[0]
    return total


def _nearest(
    outlook: Outlook, ends: tuple[int, int], layer: int, marks: Marks, node: int, far: int
) -> tuple[Ints, Ints]:
    """Where a node finds each expert now, ``[experts]``, and with each lot, ``[lots, experts]``."""
    time_s, holders = outlook.time_s[node], outlook.holders[:, layer].copy()
    held = [holders[end].copy() for end in ends]
    holders[[*ends, node]] = False
    order = np.argsort(time_s, kind="stable")
    rest = np.where(holders.any(axis=0), order[holders[order].argmax(axis=0)], -1)

    def best(one: Mask, two: Mask) -> Ints:
        times = np.stack(
            [
                np.broadcast_to(np.where(rest >= 0, time_s[rest], np.inf), one.shape),
                np.where(one, time_s[ends[0]], np.inf),
                np.where(two, time_s[ends[1]], np.inf),
            ]
        )
        which = times.argmin(axis=0)
        found = np.choose(which, [np.broadcast_to(rest, one.shape), ends[0], ends[1]])
        chosen: Ints = np.where(np.isfinite(times.min(axis=0)), found, far)
        return chosen

    one, two = ((mine | adds) & ~drops for mine, (adds, drops) in zip(held, marks, strict=True))
    return best(held[0], held[1]), best(one, two)


@compiled
def _price(
    first: int,
    last: int,
    first_slot: Ints,
    expert: Ints,
    rows: Floats,
    local_s: Floats,
    rates: Floats,
    held: Mask,
    near: Ints,
    call_s: Floats,
    wire_s: Floats,
    row_s: Floats,
) -> Floats:
    """A layer's steps with what is away at ``near`` ``[sets, experts]``; times are by holder."""
    prices = np.zeros(near.shape[0])
    for number in range(near.shape[0]):
        for step in range(first, last):
            compute, wait, wire = 0.0, 0.0, 0.0
            for slot in range(first_slot[step], first_slot[step + 1]):
                one = expert[slot]
                if held[one]:
                    compute += local_s[slot]
                else:
                    at = near[number, one]
                    wire += rows[slot] * wire_s[at]
                    wait = max(wait, call_s[at] + (rows[slot] - 1) * row_s[at])
            prices[number] += rates[step] * (max(compute, wait) + wire)
    return prices


def marks_of(lots: Sequence[Lot], experts: int) -> Marks:
    """What each lot adds and drops at *one* and at *two*."""
    sets = [[(lot.one_adds, lot.one_drops) for lot in lots], [(lot.two_adds, lot.two_drops) for lot in lots]]
    return [
        (mask_of([adds for adds, _ in one], experts), mask_of([drops for _, drops in one], experts)) for one in sets
    ]


def mask_of(sets: Sequence[Sequence[int]], experts: int) -> NDArray[np.bool_]:
    """Sets as masks: ``[sets, experts]``."""
    marks = np.zeros((len(sets), experts), bool)
    counts = [len(one) for one in sets]
    members = np.fromiter((e for one in sets for e in one), np.int64, sum(counts))
    marks[np.repeat(np.arange(len(sets)), counts), members] = True
    return marks
