"""Looks for the best division of experts between two nodes, all layers and both budgets at once.

Moves of single experts end in poor places, because which node keeps which layer whole must change for many experts
at a time. So layers are taken up again (*ruin and recreate*, Schrimpf et al. 2000): both ends are given all or some of
what is in a layer, one of them perhaps for good, and then whatever is missed least, of all layers and both ends, goes
until both budgets hold again. What is better than the best so far is the result.

An end's removal loss changes only with the steps that call the expert, so each change of one expert costs little, and
some hundred layers can be taken up within the time of a proposal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meshmoe.placement.compiled import compiled
from meshmoe.placement.cost import Branches
from meshmoe.placement.table import Mask, Table, away
from meshmoe.placement.trace import Floats, Ints
from meshmoe.placement.world import ModelShape

HEAT = 0.02
"""At first, what is this much worse than the last is gone on from all the same; less and less of it (annealing)."""

LAYERS_MAX = 4
"""Layers that are taken up at once at most."""

DENSITIES = (24, 64, 128, 256)
"""Of 256 experts of such a layer so many are given to both: few polish what is there, all are a new beginning."""

NOTHING = -3
_KEEPERS = np.array(
    [[2, -3, -3, -3], [0, -3, -3, -3], [2, 2, -3, -3], [0, 2, -3, -3], [0, 1, -3, -3]],
)
"""Of the layers that are taken up: which end gets each for good, or 2 for neither."""

WIDE = 24
"""Steps that call more experts, prompts, pay for bytes and wait whatever is held: only their bytes are looked at."""


@dataclass(frozen=True, slots=True)
class Seat:
    """What the search knows of one end.

    Attributes:
        table: Its demand, or a sketch of it.
        branch: Its way to every expert elsewhere; what the other end is to hold if it does not, the other end holds.
        held: ``[layers, experts]``, now.
        room_bytes: Free, now.
        drop_s: ``[layers, experts]``, charged where it lets go what it holds now, seconds a second.
        byte_s: Charged for each byte that it takes in.
    """

    table: Table
    branch: Branches
    held: Mask
    room_bytes: int
    drop_s: Floats
    byte_s: float


def best_division(seats: tuple[Seat, Seat], shape: ModelShape, must: Mask, turns: int, seed: int) -> tuple[Mask, Mask]:
    """Look for who of two should hold what.

    Args:
        seats: The two ends.
        shape: The model.
        must: ``[layers, experts]``, what one of the two must hold.
        turns: How often something is taken up again.
        seed: Of the choices.

    Returns:
        What each should hold: as now if nothing better was found.
    """
    sizes, (layers, experts) = shape.expert_bytes, shape.expert_bytes.shape
    count = layers * experts
    tables = [seat.table for seat in seats]
    aways = [away(seat.table, shape.row_bytes, seat.branch) for seat in seats]
    steps, slots = len(tables[0].rates), len(tables[0].place)
    item = np.concatenate([tables[0].place, tables[1].place + count])
    first_slot = np.concatenate([tables[0].first_slot, tables[1].first_slot[1:] + slots])
    first_use = np.concatenate([tables[0].first_use, tables[1].first_use[1:] + slots])
    uses = np.concatenate([tables[0].uses, tables[1].uses + steps])
    wide = np.diff(first_slot) > WIDE
    narrow = ~wide[uses]
    use_slot = np.concatenate([tables[0].use_slot, tables[1].use_slot + slots])[narrow]
    first_use, uses = np.concatenate([np.zeros(1, np.int64), np.cumsum(narrow)])[first_use], uses[narrow]
    local_s, rates = (np.concatenate([getattr(table, name) for table in tables]) for name in ("local_s", "rates"))
    remote_s, wire_s = (np.concatenate([one[i] for one in aways]) for i in range(2))
    held = np.concatenate([seat.held.ravel() for seat in seats])
    extra = np.concatenate([np.where(s.held, s.drop_s, -s.byte_s * sizes).ravel() for s in seats])
    of_wide = np.repeat(wide, np.diff(first_slot))
    extra += np.bincount(item[of_wide], (np.repeat(rates, np.diff(first_slot)) * wire_s)[of_wide], 2 * count)
    rng = np.random.default_rng(seed)
    found = _search(
        item,
        first_slot,
        local_s,
        remote_s,
        wire_s,
        rates,
        first_use,
        uses,
        use_slot,
        held,
        extra,
        np.tile(sizes.ravel(), 2),
        np.tile(must.ravel(), 2),
        np.array([seat.room_bytes for seat in seats], np.int64),
        layers,
        experts,
        _choices(turns, layers, rng),
        HEAT,
    ).reshape(2, layers, experts)
    return found[0], found[1]


def _choices(turns: int, layers: int, rng: np.random.Generator) -> Ints:
    """What is taken up in each turn.

    Returns:
        ``[turns, LAYERS_MAX + 1]``: ``layer * 3 + keeper``, where the keeper is the end that gets it for good, or 2 for
        neither; negative for nothing. Last, how many of 256 experts.
    """
    some = rng.random((turns, max(layers, LAYERS_MAX))).argsort(axis=1)[:, :LAYERS_MAX]
    kind, end = rng.integers(0, len(_KEEPERS) + 1, turns), rng.integers(0, 2, (turns, 1))
    keepers = _KEEPERS[np.minimum(kind, len(_KEEPERS) - 1)]
    keepers = np.where((keepers == 0) | (keepers == 1), keepers ^ end, keepers)
    mixed = np.where(np.arange(LAYERS_MAX) < rng.integers(2, LAYERS_MAX + 1, (turns, 1)), 0, NOTHING)
    mixed = np.where(mixed == 0, rng.integers(0, 3, mixed.shape), NOTHING)
    keepers = np.where(kind[:, None] == len(_KEEPERS), mixed, keepers)
    taken = np.where((some < layers) & (keepers != NOTHING), some * 3 + keepers, NOTHING)
    choices: Ints = np.column_stack([taken, rng.choice(DENSITIES, turns)])
    return choices


@compiled
def _search(
    item: Ints,
    first_slot: Ints,
    local_s: Floats,
    remote_s: Floats,
    wire_s: Floats,
    rates: Floats,
    first_use: Ints,
    uses: Ints,
    use_slot: Ints,
    start: Mask,
    extra: Floats,
    sizes: Ints,
    must: Mask,
    room: Ints,
    layers: int,
    experts: int,
    turns: Ints,
    hot: float,
) -> Mask:
    """The search. An *item* is an end and an expert: ``(end * layers + layer) * experts + expert``.

    Args:
        item: ``[slots]``; the other arrays of slots and steps are those of both tables, one after the other.
        start: ``[items]``, held now.
        extra: ``[items]``, charged beside the loss where an item goes that was held at first; where one goes that was
            not, minus what its coming was charged.
        sizes, must: ``[items]``.
        room: ``[2]``, bytes; changed.
        turns: As `_choices` says.
        hot: As `HEAT` says.

    Returns:
        ``[items]``.
    """
    half = layers * experts
    held = np.zeros(2 * half, np.bool_)
    losses = np.zeros(2 * half)
    computes, waits = np.zeros(len(rates)), np.zeros(len(rates))
    kept = np.zeros(2 * layers, np.bool_)
    lightest, least_of = np.full(2 * layers, -1), np.full(2 * layers, np.inf)
    stale = np.ones(2 * layers, np.bool_)
    members, place_of, count = (
        np.empty(2 * half, np.int64),
        np.empty(2 * half, np.int64),
        np.zeros(2 * layers, np.int64),
    )
    left = room.copy()
    cost = np.zeros(1)
    log, flips = np.empty(16 * half + 16, np.int64), np.zeros(1, np.int64)

    for step in range(len(rates)):
        wait = 0.0
        for slot in range(first_slot[step], first_slot[step + 1]):
            cost[0] += rates[step] * wire_s[slot]
            if remote_s[slot] > wait:
                wait = remote_s[slot]
        waits[step] = wait
        cost[0] += rates[step] * wait

    def flip(one: int) -> None:
        """Hold an item, or not any more."""
        comes = not held[one]
        cost[0] += -extra[one] if comes else extra[one]
        for use in range(first_use[one], first_use[one + 1]):
            step, mine, rate = uses[use], use_slot[use], rates[uses[use]]
            begin, end = first_slot[step], first_slot[step + 1]
            compute, wait = computes[step], waits[step]
            before = max(compute, wait)
            compute_then = max(0.0, compute + local_s[mine]) if comes else max(0.0, compute - local_s[mine])
            wait_then = wait
            if not comes:
                wait_then = max(wait, remote_s[mine])
            elif remote_s[mine] >= wait:
                wait_then = 0.0
                for slot in range(begin, end):
                    if slot != mine and not held[item[slot]] and remote_s[slot] > wait_then:
                        wait_then = remote_s[slot]
            after = max(compute_then, wait_then)
            cost[0] += rate * (after - before + (-wire_s[mine] if comes else wire_s[mine]))
            computes[step], waits[step] = compute_then, wait_then
            # Where it waits as long as before, and longer than it is busy at home, others are worth what they were.
            if wait_then != wait or compute > wait or compute_then > wait:
                for slot in range(begin, end):
                    if slot != mine and held[item[slot]]:
                        without = max(compute - local_s[slot], max(wait, remote_s[slot]))
                        without_then = max(compute_then - local_s[slot], max(wait_then, remote_s[slot]))
                        losses[item[slot]] += rate * (without_then - after - without + before)
            if comes:
                without_then = max(compute_then - local_s[mine], max(wait_then, remote_s[mine]))
                losses[one] += rate * (without_then - after + wire_s[mine])
        log[flips[0]] = one
        flips[0] += 1
        held[one] = comes
        block = one // experts
        if comes:
            place_of[one] = block * experts + count[block]
            members[place_of[one]] = one
            count[block] += 1
        else:
            losses[one] = 0.0
            count[block] -= 1
            last = members[block * experts + count[block]]
            members[place_of[one]], place_of[last] = last, place_of[one]
        left[block // layers] += -sizes[one] if comes else sizes[one]
        stale[block] = True
        mirror = (block + layers) % (2 * layers)
        if comes or lightest[mirror] == (one + half) % (2 * half):
            stale[mirror] = True  # else what is missed least there may go as before

    def lighten(block: int) -> None:
        """Find what of an end's layer is missed least, of what may go."""
        lightest[block], light = -1, np.inf
        for place in range(block * experts, block * experts + count[block]):
            one = members[place]
            loss = losses[one] + extra[one]
            better = loss < light or (loss == light and one < lightest[block])
            if better and (not must[one] or held[(one + half) % (2 * half)]):
                lightest[block], light = one, loss
        least_of[block] = light / sizes[lightest[block]] if lightest[block] >= 0 else np.inf
        stale[block] = False

    for one in range(2 * half):
        if start[one]:
            flip(one)
    for end in range(2):
        left[end] = room[end]
    best, best_cost = held.copy(), cost[0]
    now, now_cost = held.copy(), cost[0]
    for turn in range(len(turns)):
        kept[:] = False
        flips[0] = 0
        density = turns[turn, -1]
        for number in range(turns.shape[1] - 1):
            if turns[turn, number] < 0:
                continue
            layer, keeper = turns[turn, number] // 3, turns[turn, number] % 3
            for end in range(2):
                if end == keeper:
                    kept[end * layers + layer] = True
                for one in range((end * layers + layer) * experts, (end * layers + layer + 1) * experts):
                    picked = (one % half * 2654435761 + turn * 97003) // 256 % 256 < density
                    if picked and not held[one] and sizes[one] > 0:
                        flip(one)
        patience = 4 * experts
        while left[0] < 0 or left[1] < 0:
            gone, block_of, least = -1, -1, np.inf
            for force in range(2):
                for end in range(2):
                    if left[end] >= 0:
                        continue
                    for block in range(end * layers, (end + 1) * layers):
                        if stale[block]:
                            lighten(block)
                        if least_of[block] < least and (force == 1 or not kept[block]):
                            block_of, least = block, least_of[block]
                if block_of >= 0:
                    gone = lightest[block_of]
                    break
            if gone >= 0:
                flip(gone)
                continue
            # All that an end holds must be held by one of the two: something goes to the other end.
            for one in range(2 * half):
                if held[one] and left[one // half] < 0 and (losses[one] + extra[one]) / sizes[one] < least:
                    gone, least = one, (losses[one] + extra[one]) / sizes[one]
            patience -= 1
            if gone < 0 or patience < 0:
                break
            flip((gone + half) % (2 * half))
            flip(gone)
        heat = hot * now_cost * (1 - (turn + 1) / len(turns))
        if left[0] >= 0 and left[1] >= 0 and cost[0] < now_cost + heat:
            now_cost = cost[0]
            for number in range(flips[0]):
                now[log[number]] = held[log[number]]
            if now_cost < best_cost - 1e-9 * abs(best_cost):
                best_cost = now_cost
                best[:] = held
        else:
            for number in range(flips[0]):
                if held[log[number]] != now[log[number]]:
                    flip(log[number])
    return best
