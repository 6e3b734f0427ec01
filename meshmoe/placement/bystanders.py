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
    from meshmoe.placement.outlook import Outlook

Marks = tuple[tuple[Mask, Mask], tuple[Mask, Mask]]
"""For each end, what each lot adds and drops: ``[lots, experts]``."""


def they_pay(
    outlook: Outlook,
    ends: tuple[int, int],
    layers: Ints,
    marks: Marks,
    known: Mapping[int, Table],
    by_place: tuple[Ints, Ints],
) -> Floats:
    """Seconds a second that some nodes pay more with each lot: negative where they gain.

    Args:
        outlook: What is believed of the mesh.
        ends: Positions of the two who bargain.
        layers: Of each lot.
        marks: Of each end.
        known: Whose payments count, bystanders' or an end's, with their demand.
        by_place: Of the outlook's holders (`who_holds`).
    """
    total: Floats = np.zeros(len(layers))
    (adds, drops), (gets, gives) = marks
    lot, changed = np.nonzero(adds | drops | gets | gives)
    first_change = np.searchsorted(lot, np.arange(len(layers) + 1))
    first_holder, holder = by_place
    for node, table in known.items():
        time_s = outlook.time_s[node]
        wire_s = 2 * outlook.shape.row_bytes * outlook.byte_s[node]
        total += _pay(
            table.first_step,
            table.first_slot,
            table.expert,
            table.rows,
            table.local_s,
            table.rates,
            table.first_use,
            table.uses,
            layers,
            adds,
            drops,
            gets,
            gives,
            first_change,
            changed,
            outlook.holders,
            first_holder,
            holder,
            np.array([node, *ends]),
            time_s,
            time_s - wire_s,
            wire_s,
            outlook.row_s,
        )
    return total


@compiled
def who_holds(holders: Mask) -> tuple[Ints, Ints]:
    """The holders of each place, one place after the other, and where each one's begin."""
    nodes, layers, experts = holders.shape
    first = np.zeros(layers * experts + 1, np.int64)
    for node in range(nodes):
        for layer in range(layers):
            for e in range(experts):
                first[layer * experts + e + 1] += holders[node, layer, e]
    for place in range(layers * experts):
        first[place + 1] += first[place]
    who, filled = np.empty(first[-1], np.int64), first.copy()
    for node in range(nodes):
        for layer in range(layers):
            for e in range(experts):
                if holders[node, layer, e]:
                    who[filled[layer * experts + e]] = node
                    filled[layer * experts + e] += 1
    return first, who


@compiled
def _pay(
    first_step: Ints,
    first_slot: Ints,
    expert: Ints,
    rows: Floats,
    local_s: Floats,
    rates: Floats,
    first_use: Ints,
    uses: Ints,
    layers: Ints,
    adds: Mask,
    drops: Mask,
    gets: Mask,
    gives: Mask,
    first_change: Ints,
    changed: Ints,
    holders: Mask,
    first_holder: Ints,
    holder: Ints,
    who: Ints,
    time_s: Floats,
    call_s: Floats,
    wire_s: Floats,
    row_s: Floats,
) -> Floats:
    """What one node pays more with each lot; times are its own, by holder, and none at home.

    Only steps that call an expert which the lot makes nearer or farther are looked at again.

    Args:
        first_step, first_slot, expert, rows, local_s, rates, first_use, uses: Its `Table`.
        layers: Of each lot; lots of a layer stand together, or it takes longer.
        adds, drops, gets, gives: ``[lots, experts]``, what one and two add and drop.
        first_change, changed: Experts that any of these names, lot by lot, and where each lot's begin.
        holders: ``[nodes, layers, experts]``.
        first_holder, holder: The same by place (`who_holds`).
        who: The node, one, and two.
        time_s, call_s, wire_s, row_s: Until a row is back; without the bytes' time; that; of each further row.
    """
    node, one, two = who
    far = time_s.argmax()
    experts = holders.shape[2]
    rest, now, at = np.empty(experts, np.int64), np.empty(experts, np.int64), np.empty(experts, np.int64)
    moved = np.empty(experts, np.int64)
    costs, seen = np.zeros(len(rates)), np.full(len(rates), -1)
    pay = np.zeros(len(layers))
    prepared = -1

    def step_cost(step: int) -> float:
        """With each expert at its place in ``at``; the node's own are at the node."""
        compute, wait, wire = 0.0, 0.0, 0.0
        for slot in range(first_slot[step], first_slot[step + 1]):
            place = at[expert[slot]]
            if place == node:
                compute += local_s[slot]
                continue
            wire += rows[slot] * wire_s[place]
            wait = max(wait, call_s[place] + (rows[slot] - 1) * row_s[place])
        cost: float = rates[step] * (max(compute, wait) + wire)
        return cost

    for lot in range(len(layers)):
        layer = layers[lot]
        first, last = first_step[layer], first_step[layer + 1]
        if first == last:
            continue
        if layer != prepared:
            prepared = layer
            for e in range(experts):
                if holders[node, layer, e] and node not in (one, two):
                    now[e] = rest[e] = node
                    continue
                rest[e] = -1
                for number in range(first_holder[layer * experts + e], first_holder[layer * experts + e + 1]):
                    other = holder[number]
                    if other not in (one, two) and (rest[e] < 0 or time_s[other] < time_s[rest[e]]):
                        rest[e] = other
                now[e] = rest[e]
                if holders[one, layer, e] and (now[e] < 0 or time_s[one] < time_s[now[e]]):
                    now[e] = one
                if holders[two, layer, e] and (now[e] < 0 or time_s[two] < time_s[now[e]]):
                    now[e] = two
                now[e] = far if now[e] < 0 else now[e]
            at[:] = now
            for step in range(first, last):
                costs[step] = step_cost(step)
        count = 0
        for number in range(first_change[lot], first_change[lot + 1]):
            e = changed[number]
            if rest[e] == node:
                continue  # a bystander has it at home, whatever becomes of it elsewhere
            then = rest[e]
            held = (holders[one, layer, e] or adds[lot, e]) and not drops[lot, e]
            if held and (then < 0 or time_s[one] < time_s[then]):
                then = one
            held = (holders[two, layer, e] or gets[lot, e]) and not gives[lot, e]
            if held and (then < 0 or time_s[two] < time_s[then]):
                then = two
            then = far if then < 0 else then
            if time_s[then] != time_s[now[e]]:
                at[e] = then
                moved[count] = e
                count += 1
        for number in range(count):
            place = layer * experts + moved[number]
            for use in range(first_use[place], first_use[place + 1]):
                if seen[uses[use]] != lot:
                    seen[uses[use]] = lot
                    pay[lot] += step_cost(uses[use]) - costs[uses[use]]
        for number in range(count):
            at[moved[number]] = now[moved[number]]
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
