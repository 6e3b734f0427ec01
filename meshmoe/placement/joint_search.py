"""The inner loop of `meshmoe.placement.joint`: ruin and recreate, over flat arrays."""

from __future__ import annotations

import numpy as np

from meshmoe.placement.compiled import compiled
from meshmoe.placement.table import Mask
from meshmoe.placement.trace import Floats, Ints


@compiled
def search(
    place: Ints,
    first_slot: Ints,
    own: Ints,
    busy_s: Floats,
    local_s: Floats,
    wait_s: Floats,
    wire_s: Floats,
    cares: Ints,
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
    heats: Floats,
) -> Mask:
    """The search. An *item* is an end and a place: ``(end * layers + layer) * experts + expert``.

    A place's *state* says which ends hold it: bit 0 for the first end, bit 1 for the second.

    Args:
        place: ``[slots]``, ``layer * experts + expert``; slots are those of all callers, one after the other.
        first_slot: ``[steps + 1]``.
        own: ``[steps]``, the bit of the end whose step it is; 0 for a bystander's.
        busy_s: ``[steps]``, what a bystander computes at home, whatever the ends hold.
        local_s: ``[slots]``, to compute it at home.
        wait_s, wire_s: ``[slots, 4]``, by state: the branch, and the bytes' time; 0 where it is at home.
        cares: ``[slots]``, bits of the ends on whose holding it anything depends.
        rates: ``[steps]``.
        first_use, uses, use_slot: Of each item, the steps that care, and by which slot.
        start: ``[items]``, held now.
        extra: ``[items]``, charged beside the loss where an item goes that was held at first; where one goes that was
            not, minus what its coming was charged.
        sizes, must: ``[items]``.
        room: ``[2]``, bytes.
        turns: As `meshmoe.placement.joint.choices` says.
        heats: ``[turns]``; what is worse than the last by less than this share is gone on from all the same.

    Returns:
        ``[items]``.
    """
    half = layers * experts
    held = np.zeros(2 * half, np.bool_)
    state = np.zeros(half, np.int64)
    losses = np.zeros(2 * half)
    computes, waits = busy_s.copy(), np.zeros(len(rates))
    kept = np.zeros(2 * layers, np.bool_)
    lightest, least_of = np.full(2 * layers, -1), np.full(2 * layers, np.inf)
    stale = np.ones(2 * layers, np.bool_)
    members, place_of = np.empty(2 * half, np.int64), np.empty(2 * half, np.int64)
    count = np.zeros(2 * layers, np.int64)
    left = room.copy()
    cost = np.zeros(1)
    log, flips = np.empty(16 * half + 16, np.int64), np.zeros(1, np.int64)

    for step in range(len(rates)):
        wait = 0.0
        for slot in range(first_slot[step], first_slot[step + 1]):
            cost[0] += rates[step] * wire_s[slot, 0]
            wait = max(wait, wait_s[slot, 0])
        waits[step] = wait
        cost[0] += rates[step] * max(computes[step], wait)

    def lose(step: int, slot: int, now: int, compute: float, wait: float, sign: float) -> None:
        """Add to losses, or take from them, what a slot has to do with them in such a state."""
        for end in range(2):
            bit = 1 << end
            if cares[slot] & now & bit:
                away = compute - local_s[slot] if own[step] == bit else compute
                then = max(away, max(wait, wait_s[slot, now ^ bit])) - max(compute, wait)
                loss = then + wire_s[slot, now ^ bit] - wire_s[slot, now]
                losses[end * half + place[slot]] += sign * rates[step] * loss

    def flip(one: int) -> None:
        """Hold an item, or not any more."""
        comes = not held[one]
        cost[0] += -extra[one] if comes else extra[one]
        at, bit = one % half, 1 << one // half
        before, after = state[at], state[at] ^ bit
        crossed = comes
        for use in range(first_use[one], first_use[one + 1]):
            step, mine, rate = uses[use], use_slot[use], rates[uses[use]]
            begin, end = first_slot[step], first_slot[step + 1]
            compute, wait = computes[step], waits[step]
            compute_then = compute
            if own[step] == bit:
                compute_then = max(0.0, compute + local_s[mine] if comes else compute - local_s[mine])
            wait_then = wait
            if wait_s[mine, after] >= wait:
                wait_then = wait_s[mine, after]
            elif wait_s[mine, before] >= wait:
                wait_then = wait_s[mine, after]
                for slot in range(begin, end):
                    if slot != mine:
                        wait_then = max(wait_then, wait_s[slot, state[place[slot]]])
            worse_s = max(compute_then, wait_then) - max(compute, wait)
            cost[0] += rate * (worse_s + wire_s[mine, after] - wire_s[mine, before])
            computes[step], waits[step] = compute_then, wait_then
            if cares[mine] & before & ~bit:
                crossed = True
            lose(step, mine, before, compute, wait, -1.0)
            lose(step, mine, after, compute_then, wait_then, 1.0)
            # Where it waits as long as before, and longer than it is busy at home, others are worth what they were.
            if wait_then != wait or compute > wait or compute_then > wait:
                more_s = max(compute, wait) - max(compute_then, wait_then)
                for slot in range(begin, end):
                    now = state[place[slot]]
                    which = cares[slot] & now
                    if which == 0 or slot == mine:
                        continue
                    mine_s = local_s[slot] if which & own[step] else 0.0
                    if which & ~bit:
                        crossed = True
                    if which & 1:
                        far_s, here_s = wait_s[slot, now ^ 1], mine_s if own[step] == 1 else 0.0
                        then = max(compute_then - here_s, max(wait_then, far_s))
                        losses[place[slot]] += rate * (then - max(compute - here_s, max(wait, far_s)) + more_s)
                    if which & 2:
                        far_s, here_s = wait_s[slot, now ^ 2], mine_s if own[step] == 2 else 0.0
                        then = max(compute_then - here_s, max(wait_then, far_s))
                        losses[half + place[slot]] += rate * (then - max(compute - here_s, max(wait, far_s)) + more_s)
        log[flips[0]] = one
        flips[0] += 1
        held[one], state[at] = comes, after
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
        if crossed or lightest[mirror] == (one + half) % (2 * half):
            stale[mirror] = True  # else what is missed least there may go as before

    def lighten(block: int) -> None:
        """Find what of an end's layer is missed least, of what may go."""
        lightest[block], light = -1, np.inf
        for member in range(block * experts, block * experts + count[block]):
            one = members[member]
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
        if left[0] >= 0 and left[1] >= 0 and cost[0] < now_cost + heats[turn] * abs(now_cost):
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
