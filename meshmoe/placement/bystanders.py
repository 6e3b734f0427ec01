"""What a bargain does to those who do not sit at it, from the demand of theirs that is known.

Where links are unequal, an expert that moves is nearer for some third nodes and farther for others. An upper bound of
what they lose is easily had from their demand an expert, but it is far too high (a set waits for its slowest branch
alone), it knows no gains, and so it forbids much of what would help all. With a bystander's table, or sketch, each lot
is priced as its own steps would pay for it: exactly, as costs of layers add up and a settlement takes one lot a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from meshmoe.placement.bargain import Lot
from meshmoe.placement.compiled import compiled
from meshmoe.placement.table import Mask, Table
from meshmoe.placement.trace import Floats, Ints

if TYPE_CHECKING:
    from meshmoe.placement.lots import Outlook

Marks = tuple[tuple[Mask, Mask], tuple[Mask, Mask]]
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
    (adds, drops), (gets, gives) = marks
    touched = adds | drops | gets | gives
    for node, table in known.items():
        if node in ends:
            continue
        time_s = outlook.time_s[node]
        wire_s = 2 * outlook.shape.row_bytes * outlook.byte_s[node]
        total += _pay(
            table.first_step,
            table.first_slot,
            table.expert,
            table.rows,
            table.local_s,
            table.rates,
            layers,
            adds,
            drops,
            gets,
            gives,
            touched,
            outlook.holders,
            np.array([node, *ends]),
            time_s,
            time_s - wire_s,
            wire_s,
            outlook.row_s,
        )
    return total


@compiled
def _pay(
    first_step: Ints,
    first_slot: Ints,
    expert: Ints,
    rows: Floats,
    local_s: Floats,
    rates: Floats,
    layers: Ints,
    adds: Mask,
    drops: Mask,
    gets: Mask,
    gives: Mask,
    touched: Mask,
    holders: Mask,
    who: Ints,
    time_s: Floats,
    call_s: Floats,
    wire_s: Floats,
    row_s: Floats,
) -> Floats:
    """What one node pays more with each lot; times are its own, by holder.

    Args:
        first_step, first_slot, expert, rows, local_s, rates: Its `Table`.
        layers: Of each lot.
        adds, drops, gets, gives: ``[lots, experts]``, what one and two add and drop.
        touched: Any of these.
        holders: ``[nodes, layers, experts]``.
        who: The node, one, and two.
        time_s, call_s, wire_s, row_s: Until a row is back; without the bytes' time; that; of each further row.
    """
    node, one, two = who
    far = time_s.argmax()
    experts = holders.shape[2]
    rest, now, then = np.empty(experts, np.int64), np.empty(experts, np.int64), np.empty(experts, np.int64)
    called = np.zeros(experts, np.bool_)
    pay = np.zeros(len(layers))
    prepared, cost_now = -1, 0.0
    for lot in range(len(layers)):
        layer = layers[lot]
        first, last = first_step[layer], first_step[layer + 1]
        if first == last:
            continue
        fresh = layer != prepared
        if fresh:
            prepared = layer
            called[:] = False
            for slot in range(first_slot[first], first_slot[last]):
                called[expert[slot]] = not holders[node, layer, expert[slot]]
            for e in range(experts):
                rest[e] = -1
                for other in range(len(holders)):
                    held = called[e] and other not in (node, one, two) and holders[other, layer, e]
                    if held and (rest[e] < 0 or time_s[other] < time_s[rest[e]]):
                        rest[e] = other
        differs = False
        for e in range(experts):
            if not called[e]:
                continue
            if fresh:
                now[e] = rest[e]
                if holders[one, layer, e] and (now[e] < 0 or time_s[one] < time_s[now[e]]):
                    now[e] = one
                if holders[two, layer, e] and (now[e] < 0 or time_s[two] < time_s[now[e]]):
                    now[e] = two
                now[e] = far if now[e] < 0 else now[e]
            then[e] = now[e]
            if not touched[lot, e]:
                continue
            then[e] = rest[e]
            held = (holders[one, layer, e] or adds[lot, e]) and not drops[lot, e]
            if held and (then[e] < 0 or time_s[one] < time_s[then[e]]):
                then[e] = one
            held = (holders[two, layer, e] or gets[lot, e]) and not gives[lot, e]
            if held and (then[e] < 0 or time_s[two] < time_s[then[e]]):
                then[e] = two
            then[e] = far if then[e] < 0 else then[e]
            differs |= time_s[then[e]] != time_s[now[e]]
        if not differs and not fresh:
            continue
        cost = 0.0
        for turn in range(2 if fresh else 1):
            cost = 0.0
            for step in range(first, last):
                compute, wait, wire = 0.0, 0.0, 0.0
                for slot in range(first_slot[step], first_slot[step + 1]):
                    e = expert[slot]
                    if not called[e]:
                        compute += local_s[slot]
                        continue
                    at = now[e] if fresh and turn == 0 else then[e]
                    wire += rows[slot] * wire_s[at]
                    wait = max(wait, call_s[at] + (rows[slot] - 1) * row_s[at])
                cost += rates[step] * (max(compute, wait) + wire)
            if fresh and turn == 0:
                cost_now = cost
        pay[lot] = cost - cost_now if differs else 0.0
    return pay


def marks_of(lots: Sequence[Lot], experts: int, *, proposer: bool) -> tuple[Mask, Mask]:
    """What each lot adds and drops at one end, which is *one* or *two*."""
    pairs = [(lot.one_adds, lot.one_drops) if proposer else (lot.two_adds, lot.two_drops) for lot in lots]
    return mask_of([adds for adds, _ in pairs], experts), mask_of([drops for _, drops in pairs], experts)


def mask_of(sets: Sequence[Sequence[int]], experts: int) -> NDArray[np.bool_]:
    """Sets as masks: ``[sets, experts]``."""
    marks = np.zeros((len(sets), experts), bool)
    counts = [len(one) for one in sets]
    members = np.fromiter(chain.from_iterable(sets), np.int64, sum(counts))
    marks[np.repeat(np.arange(len(sets)), counts), members] = True
    return marks
