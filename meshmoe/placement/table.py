"""A trace as flat arrays, and loops over them: how sets of experts are priced a thousand times a second.

All layers' steps stand in one row of slots. Equal steps of a layer (the same experts with the same rows) are one step
with the sum of their rates: of 1,792 recorded tokens some 700 are different in a layer. What a step costs is said by
`meshmoe.placement.cost`; here is the same arithmetic, checked against it by a test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meshmoe.placement.compiled import compiled
from meshmoe.placement.cost import Branches
from meshmoe.placement.trace import Floats, Ints, Steps, Trace
from meshmoe.placement.world import ModelShape, NodeSpec

Mask = NDArray[np.bool_]

_MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)


@dataclass(frozen=True, slots=True)
class Table:
    """A node's trace, without regard to who holds what.

    Attributes:
        first_step: ``[layers + 1]``, where each layer's steps begin.
        first_slot: ``[steps + 1]``, where each step's slots begin.
        expert: ``[slots]``, within its layer.
        place: ``[slots]``, ``layer * experts + expert``.
        rows: ``[slots]``.
        local_s: ``[slots]``, to compute it at home.
        rates: ``[steps]``, a second.
        first_use: ``[layers * experts + 1]``, where each expert's steps begin in ``uses``.
        uses: ``[slots]``, steps that call an expert, expert by expert.
        use_slot: ``[slots]``, the slot by which each of these steps does.
    """

    first_step: Ints
    first_slot: Ints
    expert: Ints
    place: Ints
    rows: Floats
    local_s: Floats
    rates: Floats
    first_use: Ints
    uses: Ints
    use_slot: Ints


def tabulate(shape: ModelShape, spec: NodeSpec, trace: Trace) -> Table:
    """Lay a trace out."""
    parts = [_kind(shape, steps) for steps in (trace.decode, trace.prefill) if len(steps)]
    if not parts:
        none, zeros = np.zeros(0, np.int64), np.zeros(0)
        first = np.zeros(shape.layers * shape.experts + 1, np.int64)
        return Table(first[: shape.layers + 1], first[:1], none, none, zeros, zeros, zeros, first, none, none)
    layer, count, rates = (np.concatenate([part[i] for part in parts]) for i in range(3))
    place, rows = (np.concatenate([part[i] for part in parts]) for i in (3, 4))
    return lay_out(shape, layer, count, rates, place, rows, spec.expert_s + rows * spec.row_s)


def lay_out(
    shape: ModelShape, layer: Ints, count: Ints, rates: Floats, place: Ints, rows: Floats, local_s: Floats
) -> Table:
    """Make a table.

    Args:
        shape: The model.
        layer, count, rates: ``[steps]``, in any order: where a step belongs, its slots, its rate.
        place, rows, local_s: ``[slots]``, step by step in that order.
    """
    order = np.argsort(layer, kind="stable")
    starts = np.cumsum(count) - count
    count = count[order]
    first_slot = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
    slots = np.arange(first_slot[-1]) - np.repeat(first_slot[:-1] - starts[order], count)
    place = place[slots]
    step_of = np.repeat(np.arange(len(count)), count)
    by_place = np.argsort(place, kind="stable")
    return Table(
        first_step=np.searchsorted(layer[order], np.arange(shape.layers + 1)),
        first_slot=first_slot,
        expert=place % shape.experts,
        place=place,
        rows=rows[slots],
        local_s=local_s[slots],
        rates=rates[order],
        first_use=np.searchsorted(place[by_place], np.arange(shape.layers * shape.experts + 1)),
        uses=step_of[by_place],
        use_slot=by_place,
    )


def _kind(shape: ModelShape, steps: Steps) -> tuple[Ints, Ints, Floats, Ints, Floats]:
    """Different steps of one kind: layer, slots, and rate of each; place and rows of each slot."""
    used = (steps.experts >= 0) & (steps.rows > 0)
    place = np.where(used, steps.experts + np.arange(shape.layers)[:, None] * shape.experts, 0).astype(np.int64)
    rows = np.where(used, steps.rows, 0)
    # Equal sets have equal sums of mixed bits, in whatever order; others have, by chance, once in 2^64.
    mixed = (place.astype(np.uint64) + _MIX[0]) * _MIX[1] ^ (rows.astype(np.uint64) + _MIX[0]) * _MIX[2]
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX[1]
    mixed = np.where(used, mixed ^ (mixed >> np.uint64(32)), np.uint64(0))
    keys = mixed.sum(axis=2, dtype=np.uint64).ravel()
    _, example, same = np.unique(keys, return_index=True, return_inverse=True)
    rates = np.zeros(len(example))
    np.add.at(rates, same.ravel(), np.repeat(steps.rates, shape.layers))
    calls = used.reshape(len(keys), -1)[example].any(axis=1)  # a layer in which a step calls nobody is no step
    example, rates = example[calls], rates[calls]
    some = used.reshape(len(keys), -1)[example]
    return (
        (example % shape.layers).astype(np.int64),
        some.sum(axis=1, dtype=np.int64),
        rates,
        place.reshape(len(keys), -1)[example][some],
        rows.reshape(len(keys), -1)[example][some].astype(np.float64),
    )


def away(table: Table, row_bytes: int, branch: Branches) -> tuple[Floats, Floats]:
    """What each slot takes elsewhere: the branch, and the bytes' time; ``[slots]`` each."""
    call_s, byte_s, row_s = (values.ravel()[table.place] for values in branch)
    return call_s + (table.rows - 1) * row_s, 2 * row_bytes * table.rows * byte_s


@compiled
def price_sets(
    first_step: Ints,
    first_slot: Ints,
    expert: Ints,
    local_s: Floats,
    remote_s: Floats,
    wire_s: Floats,
    rates: Floats,
    layers: Ints,
    held: Mask,
) -> Floats:
    """Seconds a second of all steps of one of ``layers`` with each of ``held`` ``[sets, experts]``."""
    prices = np.zeros(held.shape[0])
    for number in range(held.shape[0]):
        total = 0.0
        for step in range(first_step[layers[number]], first_step[layers[number] + 1]):
            compute, wait, wire = 0.0, 0.0, 0.0
            for slot in range(first_slot[step], first_slot[step + 1]):
                if held[number, expert[slot]]:
                    compute += local_s[slot]
                else:
                    wire += wire_s[slot]
                    if remote_s[slot] > wait:
                        wait = remote_s[slot]
            total += rates[step] * (max(compute, wait) + wire)
        prices[number] = total
    return prices


@compiled
def eliminate(
    first_step: Ints,
    first_slot: Ints,
    expert: Ints,
    local_s: Floats,
    remote_s: Floats,
    wire_s: Floats,
    rates: Floats,
    first_use: Ints,
    uses: Ints,
    use_slot: Ints,
    layers: Ints,
    start: Mask,
    keep: Mask,
) -> tuple[Ints, Floats, Ints]:
    """Remove experts of some layers one by one, least loss first: see `meshmoe.placement.pricing.Pricer.eliminate`.

    An expert's loss changes only with the steps that call it, so a removal looks at those steps alone, and of these
    only at such as wait longer then, or are busy at home.

    Args:
        first_step, first_slot, expert, local_s, remote_s, wire_s, rates: As in `Table`, and of `away`.
        first_use, uses, use_slot: As in `Table`.
        layers: ``[jobs]``.
        start, keep: ``[jobs, experts]``; what is in the former and not in the latter goes.

    Returns:
        The orders, one after the other; the cost's rise by each removal; and where each job's order begins:
        ``[jobs + 1]``.
    """
    jobs, experts = start.shape
    firsts = np.zeros(jobs + 1, np.int64)
    for job in range(jobs):
        firsts[job + 1] = firsts[job]
        for one in range(experts):
            if start[job, one] and not keep[job, one]:
                firsts[job + 1] += 1
    order, rises = np.empty(firsts[jobs], np.int64), np.empty(firsts[jobs])
    computes, waits = np.zeros(len(rates)), np.zeros(len(rates))
    losses = np.zeros(experts)
    held = np.zeros(experts, np.bool_)
    called, uncalled = np.empty(experts, np.int64), np.empty(experts, np.int64)
    for job in range(jobs):
        layer = layers[job]
        held[:] = start[job]
        losses[:] = 0.0
        for step in range(first_step[layer], first_step[layer + 1]):
            compute, wait = 0.0, 0.0
            for slot in range(first_slot[step], first_slot[step + 1]):
                if held[expert[slot]]:
                    compute += local_s[slot]
                elif remote_s[slot] > wait:
                    wait = remote_s[slot]
            computes[step], waits[step] = compute, wait
            now = max(compute, wait)
            for slot in range(first_slot[step], first_slot[step + 1]):
                if held[expert[slot]]:
                    then = max(compute - local_s[slot], max(wait, remote_s[slot])) - now + wire_s[slot]
                    losses[expert[slot]] += rates[step] * then
        some, others, next_other = 0, 0, 0
        for one in range(experts):
            if start[job, one] and not keep[job, one]:
                if first_use[layer * experts + one] < first_use[layer * experts + one + 1]:
                    called[some] = one
                    some += 1
                else:
                    uncalled[others] = one
                    others += 1
        for turn in range(firsts[job], firsts[job + 1]):
            # Of equal losses the smallest number's goes. Nobody calls the others, so their loss is zero for good.
            gone, at = -1, -1
            if next_other < others:
                gone = uncalled[next_other]
            for place in range(some):
                one = called[place]
                if gone < 0 or losses[one] < losses[gone] or (losses[one] == losses[gone] and one < gone):
                    gone, at = one, place
            if at >= 0:
                some -= 1
                called[at] = called[some]
            else:
                next_other += 1
            order[turn], rises[turn] = gone, losses[gone]
            held[gone] = False
            for use in range(first_use[layer * experts + gone], first_use[layer * experts + gone + 1]):
                step, slot_gone = uses[use], use_slot[use]
                compute, wait = computes[step], waits[step]
                compute_then, wait_then = compute - local_s[slot_gone], max(wait, remote_s[slot_gone])
                computes[step], waits[step] = compute_then, wait_then
                if wait_then == wait and compute <= wait:
                    continue  # it waits as long as before, whoever of the others goes next
                now, now_then = max(compute, wait), max(compute_then, wait_then)
                for slot in range(first_slot[step], first_slot[step + 1]):
                    if held[expert[slot]]:
                        then = max(compute - local_s[slot], max(wait, remote_s[slot])) - now
                        after = max(compute_then - local_s[slot], max(wait_then, remote_s[slot])) - now_then
                        losses[expert[slot]] += rates[step] * (after - then)
    return order, rises, firsts
