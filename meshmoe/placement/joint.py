"""Looks for the best division of experts between two nodes, all layers and both budgets at once.

Moves of single experts end in poor places, because which node keeps which layer whole must change for many experts
at a time. So layers are taken up again (*ruin and recreate*, Schrimpf et al. 2000): both ends are given all or some of
what is in a layer, one of them perhaps for good, and then whatever is missed least, of all layers and both ends, goes
until both budgets hold again. What is better than the best so far is the result.

Where an expert stands matters to third nodes, too, if one end is nearer to them than the other. So the demand of those
that are known is part of the cost that the search goes by.

An end's removal loss changes only with the steps that call the expert, so each change of one expert costs little, and
some hundred layers can be taken up within the time of a proposal (`meshmoe.placement.joint_search`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from meshmoe.placement.cost import Branches
from meshmoe.placement.joint_search import search
from meshmoe.placement.table import Mask, Table
from meshmoe.placement.trace import Floats, Ints
from meshmoe.placement.world import ModelShape

HEAT = 0.02
"""At first, what is this much worse than the last is gone on from all the same; less and less of it (annealing)."""

LAYERS_MAX = 4
"""Layers that are taken up at once at most."""

DENSITIES = (24, 64, 128, 256)
"""Of 256 experts of such a layer so many are given to both: few polish what is there, all are a new beginning."""

RESTART_TURNS = 60
"""After everything was given out anew."""

NOTHING = -3
_KEEPERS = np.array(
    [[2, -3, -3, -3], [0, -3, -3, -3], [2, 2, -3, -3], [0, 2, -3, -3], [0, 1, -3, -3]],
)
"""Of the layers that are taken up: which end gets each for good, or 2 for neither."""

WIDE = 24
"""Steps that call more experts, prompts, pay for bytes and wait whatever is held: only their bytes are looked at."""

STATES = 4
"""Who of the two holds an expert: neither, the first, the second, both."""


class Caller(NamedTuple):
    """Somebody whose steps count.

    Attributes:
        table: Its demand, or a sketch of it.
        ways: To the expert of each of its slots elsewhere, by who of the two holds it: ``[STATES, slots]`` each.
        here: ``[slots]``, what a bystander has at home; of an end the search decides.
    """

    table: Table
    ways: Branches
    here: Mask | None = None

    @property
    def cares(self) -> bool:
        """Whether it makes a difference to this bystander what the ends hold."""
        away = slice(None) if self.here is None else ~self.here
        return any(bool((values[1:, away] != values[0, away]).any()) for values in self.ways)


@dataclass(frozen=True, slots=True)
class Seat:
    """What the search knows of one end.

    Attributes:
        caller: Its demand.
        held: ``[layers, experts]``, now.
        room_bytes: Free, now.
        drop_s: ``[layers, experts]``, charged where it lets go what it holds now, seconds a second.
        byte_s: Charged for each byte that it takes in.
    """

    caller: Caller
    held: Mask
    room_bytes: int
    drop_s: Floats
    byte_s: float


def best_division(
    seats: tuple[Seat, Seat],
    shape: ModelShape,
    must: Mask,
    turns: int,
    seed: int,
    bystanders: Sequence[Caller] = (),
    restarts: int = 0,
) -> tuple[Mask, Mask]:
    """Look for who of two should hold what.

    Args:
        seats: The two ends.
        shape: The model.
        must: ``[layers, experts]``, what one of the two must hold.
        turns: How often something is taken up again.
        seed: Of the choices.
        bystanders: Others whose steps count.
        restarts: How often everything is given out anew besides, with `RESTART_TURNS` turns each.

    Returns:
        What each should hold: as now if nothing better was found.
    """
    sizes, (layers, experts) = shape.expert_bytes, shape.expert_bytes.shape
    rng = np.random.default_rng(seed)
    callers = [_laid_out(seat.caller, shape, 1 << end) for end, seat in enumerate(seats)]
    callers += [_laid_out(caller, shape, 0) for caller in bystanders]
    steps = np.cumsum([0, *(len(one.rates) for one in callers)])
    slots = np.cumsum([0, *(len(one.place) for one in callers)])
    place, local_s, cares, own, busy_s, rates, wide = (
        np.concatenate([getattr(one, name) for one in callers])
        for name in ("place", "local_s", "cares", "own", "busy_s", "rates", "wide")
    )
    wait_s, wire_s = (
        np.ascontiguousarray(np.concatenate([getattr(one, name) for one in callers], axis=1).T)
        for name in ("wait_s", "wire_s")
    )
    counts = np.concatenate([np.diff(one.first_slot) for one in callers])
    first_slot = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    step_of = np.repeat(np.arange(steps[-1]), counts)
    of_wide = wide[step_of]
    cares[of_wide] = 0
    held = np.concatenate([seat.held.ravel() for seat in seats])
    extra = np.concatenate([np.where(s.held, s.drop_s, -s.byte_s * sizes).ravel() for s in seats])
    items, used = [], []
    for end in range(2):
        mine = slice(slots[end], slots[end + 1])
        some = of_wide[mine]
        bytes_s = rates[step_of[mine]][some] * wire_s[mine][some, STATES - 1 - (1 << end)]
        extra += np.bincount(place[mine][some] + end * sizes.size, bytes_s, 2 * sizes.size)
        used.append(np.flatnonzero(cares >> end & 1))
        items.append(place[used[end]] + end * sizes.size)
    wait_s[of_wide] = wire_s[of_wide] = 0.0
    item, use_slot = np.concatenate(items), np.concatenate(used)
    by_item = np.argsort(item, kind="stable")
    item, use_slot = item[by_item], use_slot[by_item]
    choices, heats = _schedule(turns, layers, restarts, rng)
    found = search(
        place,
        first_slot,
        own,
        busy_s,
        local_s,
        wait_s,
        wire_s,
        cares,
        rates,
        np.searchsorted(item, np.arange(2 * sizes.size + 1)),
        step_of[use_slot],
        use_slot,
        held,
        extra,
        np.tile(sizes.ravel(), 2),
        np.tile(must.ravel(), 2),
        np.array([seat.room_bytes for seat in seats], np.int64),
        layers,
        experts,
        choices,
        heats,
    ).reshape(2, layers, experts)
    return found[0], found[1]


class _Slots(NamedTuple):
    """A caller's steps, as `search` takes them."""

    place: Ints
    first_slot: Ints
    local_s: Floats
    wait_s: Floats
    wire_s: Floats
    cares: Ints
    own: Ints
    busy_s: Floats
    rates: Floats
    wide: Mask


def _laid_out(caller: Caller, shape: ModelShape, own: int) -> _Slots:
    """Price a caller's slots in all states; ``own`` is its bit if it is an end."""
    table, ways = caller.table, caller.ways
    here = np.zeros(len(table.place), bool) if caller.here is None else caller.here
    wait_s = ways.call_s + (table.rows - 1) * ways.row_s
    wire_s = 2 * shape.row_bytes * table.rows * ways.byte_s
    for state in range(STATES):
        at_home = slice(None) if state & own else here
        wait_s[state, at_home] = wire_s[state, at_home] = 0.0
    step_of = np.repeat(np.arange(len(table.rates)), np.diff(table.first_slot))
    # Of nothing it counts in whole numbers, which would make those of the search whole.
    busy_s = np.bincount(step_of[here], table.local_s[here], len(table.rates)).astype(np.float64)
    cares = np.full(len(table.place), own)
    for bit in (1, 2):
        for without, then in ((0, bit), (3 - bit, 3)):
            differs = (wait_s[without] != wait_s[then]) | (wire_s[without] != wire_s[then])
            cares |= differs * bit
    steps = len(table.rates)
    wide = np.diff(table.first_slot) > WIDE
    return _Slots(
        table.place,
        table.first_slot,
        table.local_s,
        wait_s,
        wire_s,
        cares,
        np.full(steps, own),
        busy_s,
        table.rates,
        wide,
    )


def _schedule(turns: int, layers: int, restarts: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """What is taken up in each turn, and how much worse may be gone on from.

    Returns:
        ``[turns, layers + 1]``: ``layer * 3 + keeper``, where the keeper is the end that gets it for good, or 2 for
        neither; negative for nothing. Last, how many of 256 experts. And heats, ``[turns]``.
    """
    choices, heats = [_choices(turns, layers, rng)], [_cooling(turns)]
    width = choices[0].shape[1]
    for _ in range(restarts):
        anew = np.full((1, width), NOTHING)
        anew[0, :layers] = np.arange(layers) * 3 + rng.integers(0, 3, layers)
        anew[0, -1] = 256
        choices += [anew, _choices(RESTART_TURNS, layers, rng)]
        heats += [np.full(1, np.inf), _cooling(RESTART_TURNS)]
    return np.concatenate(choices), np.concatenate(heats)


def _cooling(turns: int) -> Floats:
    return HEAT * (1 - (np.arange(turns) + 1) / turns)


def _choices(turns: int, layers: int, rng: np.random.Generator) -> Ints:
    some = rng.random((turns, max(layers, LAYERS_MAX))).argsort(axis=1)[:, :LAYERS_MAX]
    kind, end = rng.integers(0, len(_KEEPERS) + 1, turns), rng.integers(0, 2, (turns, 1))
    keepers = _KEEPERS[np.minimum(kind, len(_KEEPERS) - 1)]
    keepers = np.where((keepers == 0) | (keepers == 1), keepers ^ end, keepers)
    mixed = np.where(np.arange(LAYERS_MAX) < rng.integers(2, LAYERS_MAX + 1, (turns, 1)), 0, NOTHING)
    mixed = np.where(mixed == 0, rng.integers(0, 3, mixed.shape), NOTHING)
    keepers = np.where(kind[:, None] == len(_KEEPERS), mixed, keepers)
    taken = np.where((some < layers) & (keepers != NOTHING), some * 3 + keepers, NOTHING)
    rest = np.full((turns, max(0, layers - LAYERS_MAX)), NOTHING)
    return np.column_stack([taken, rest, rng.choice(DENSITIES, turns)])
