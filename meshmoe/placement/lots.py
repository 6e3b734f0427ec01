"""Which lots two nodes put on the table, and what each end says they are worth.

The proposer knows its own trace, and of its partner what gossip tells: what it holds and owns, and how often it calls
each expert. It offers, layer by layer, to take what its partner owns, to give what it owns, and to trade; in several
sizes up to everything, because a part of a layer may be worth nothing where the whole is worth a lot. Orders come from
its own elimination, and from the partner's demand. Each end adds lots that concern its own copies only: room for what
it takes must come from somewhere.

An end's price is the fall of its own cost, less what moving the bytes costs over the horizon, less an upper bound of
what *others* lose by a copy that goes: demand for it times the seconds by which its next holder is farther (the slowest
branch of a set cannot slow down by more than the sum of its branches). So where views are right, no exchange raises the
mesh's cost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from zlib import crc32

import numpy as np

from meshmoe.placement.bargain import PRICE_SCALE, Lot
from meshmoe.placement.bystanders import marks_of, mask_of, they_pay, who_holds
from meshmoe.placement.joint import Seat, best_division
from meshmoe.placement.outlook import Outlook
from meshmoe.placement.pricing import Pricer
from meshmoe.placement.table import Mask, Table
from meshmoe.placement.trace import Ints
from meshmoe.placement.world import Holders

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Experts in a lot; the whole of what there is comes on top."""

NOBODY_KNOWN: Mapping[int, Table] = MappingProxyType({})

WORK = 400_000
"""Of the search for a division, in turns times experts times those who care; within these bounds."""

TURNS_MIN, TURNS_MAX, RESTARTS = 80, 600, 6
"""Where the model is so small that there is time for all turns, everything is given out anew so often besides."""

BYSTANDER_SLOTS = 1024
"""Of a bystander's demand that guides the search; prices are by all that is known."""


@dataclass(frozen=True)
class Side:
    """One end of a bargain; to be left before the plan changes.

    Attributes:
        outlook: What it believes.
        me: Its position.
        other: Its partner's.
        table: Its demand.
        pricer: Its own, with the partner as holder of what it would give.
        move_s: Seconds a second that bringing in one byte costs, over the horizon.
    """

    outlook: Outlook
    me: int
    other: int
    table: Table
    pricer: Pricer
    move_s: float

    @classmethod
    def of(cls, outlook: Outlook, me: int, other: int, table: Table, move_s: float) -> Side:
        """Take a seat."""
        pricer = Pricer(outlook.shape, table, outlook.branches(me, other))
        return cls(outlook, me, other, table, pricer, move_s)

    @cached_property
    def _who_holds(self) -> tuple[Ints, Ints]:
        return who_holds(self.outlook.holders)

    def propose(self) -> list[Lot]:
        """Lots of all layers, of the proposer, which is *one*."""
        outlook, layers = self.outlook, range(self.outlook.shape.layers)
        mine = outlook.holders[self.me]
        wanted = self.pricer.orders(outlook.shape.exists, mine)
        unwanted = self.pricer.orders(mine, np.zeros_like(mine))
        calm = np.argsort(outlook.demand[self.other], axis=1, kind="stable")
        keen = np.argsort(-outlook.demand[self.other], axis=1, kind="stable")
        return [
            lot
            for layer in layers
            for lot in self._lots(layer, wanted[layer][::-1], unwanted[layer], calm[layer], keen[layer])
        ]

    def division(
        self, table: Table, partner: Table, room_bytes: tuple[int, int], known: Mapping[int, Table] = NOBODY_KNOWN
    ) -> list[Lot]:
        """The lots, one a layer, that lead to the best division between the two that a search found.

        Args:
            table: This end's demand, in short; this end is *one*.
            partner: Its partner's.
            room_bytes: Free at each end.
            known: Bystanders, with their demand in short (`BYSTANDER_SLOTS`).
        """
        outlook, shape = self.outlook, self.outlook.shape
        ends = self.me, self.other
        pair = outlook.owned(self.me) | outlook.owned(self.other)
        asked = np.ones(len(outlook.holders), bool)
        asked[[*known, *ends]] = False
        seats = [
            Seat(
                outlook.caller(me, ends, demand),
                outlook.holders[me],
                room,
                np.where(pair, outlook.passing_regret(me, other, asked), outlook.regret(me, asked)),
                self.move_s,
            )
            for me, other, demand, room in (
                (self.me, self.other, table, room_bytes[0]),
                (self.other, self.me, partner, room_bytes[1]),
            )
        ]
        bystanders = [outlook.caller(node, ends, one) for node, one in known.items() if node not in ends]
        bystanders = [one for one in bystanders if one.cares]
        work = WORK // ((2 + len(bystanders)) * shape.layers * shape.experts)
        turns = min(TURNS_MAX, max(TURNS_MIN, work))
        restarts = RESTARTS if turns == TURNS_MAX else 0
        # Of the same plans the search is the same: asked again about the same demand, it finds nothing more.
        seed = crc32(outlook.holders[[self.me, self.other]].tobytes())
        found = best_division((seats[0], seats[1]), shape, pair, turns, seed, bystanders, restarts)
        return [lot for layer in range(shape.layers) for lot in self._towards(layer, found[0][layer], found[1][layer])]

    def _towards(self, layer: int, one: Mask, two: Mask) -> Iterator[Lot]:
        outlook = self.outlook
        mine, theirs = outlook.holders[self.me, layer], outlook.holders[self.other, layer]
        if (one == mine).all() and (two == theirs).all():
            return
        i_own, they_own = outlook.owner[layer] == self.me, outlook.owner[layer] == self.other
        changes = (they_own & ~two, i_own & ~one, one & ~mine, mine & ~one, two & ~theirs, theirs & ~two)
        yield Lot(layer, *(tuple(np.flatnonzero(change).tolist()) for change in changes))

    def own_lots(self) -> list[Lot]:
        """Lots that concern only the copies of the partner, which is *two*."""
        outlook = self.outlook
        held, exists = outlook.holders[self.me], outlook.shape.exists
        wanted = self.pricer.orders(exists, held)
        unwanted = self.pricer.orders(held, held & outlook.owned(self.me))
        lots = []
        for layer in range(outlook.shape.layers):
            lots += [Lot(layer, two_adds=experts) for experts in _prefixes(wanted[layer][::-1])]
            lots += [Lot(layer, two_drops=experts) for experts in _prefixes(unwanted[layer])]
        return lots

    def prices(
        self,
        lots: Sequence[Lot],
        *,
        proposer: bool,
        known: Mapping[int, Table] = NOBODY_KNOWN,
        counted: Collection[int] = (),
        alone: bool = False,
    ) -> list[int]:
        """What each lot is worth to this end, and to those for whom it speaks.

        Args:
            lots: From `propose` and `own_lots` of the two ends.
            proposer: Whether this end is *one*.
            known: Bystanders for whom this end speaks, with their demand.
            counted: Bystanders for whom the other end speaks. Of the rest, each end counts only what they may lose
                at most by what it drops.
            alone: Whether the other end is one of those, as it will not price these lots itself.
        """
        if not lots:
            return []
        outlook = self.outlook
        layers = np.array([lot.layer for lot in lots])
        adds, drops = marks_of(lots, outlook.shape.experts, proposer=proposer)
        given = mask_of([lot.to_two if proposer else lot.to_one for lot in lots], outlook.shape.experts)
        size_s = outlook.shape.expert_bytes.max(axis=1) * self.move_s
        gains = -adds.sum(axis=1) * size_s[layers]
        asked = np.ones(len(outlook.holders), bool)
        speaks_for = {node: table for node, table in known.items() if node not in counted}
        speaks_for[self.me] = self.table
        if not alone:
            speaks_for.pop(self.other, None)
            asked[self.other] = False
        asked[[*speaks_for, *counted]] = False
        for regret, gone in (
            (outlook.passing_regret(self.me, self.other, asked), drops & given),
            (outlook.regret(self.me, asked), drops & ~given),
        ):
            gains -= (regret[layers] * gone).sum(axis=1)
        marks = (adds, drops), marks_of(lots, outlook.shape.experts, proposer=not proposer)
        gains -= they_pay(outlook, (self.me, self.other), layers, marks, speaks_for, self._who_holds)
        prices: list[int] = np.floor(gains * PRICE_SCALE).astype(np.int64).tolist()
        return prices

    # -- which lots ------------------------------------------------------------

    def _lots(self, layer: int, wanted: Ints, unwanted: Ints, calm: Ints, keen: Ints) -> Iterator[Lot]:
        """Of one layer.

        Args:
            layer: Which one.
            wanted: What this end lacks, most wanted first.
            unwanted: What it holds, least missed first.
            calm, keen: All experts, those that the other end calls least first, and most first.
        """
        owner = self.outlook.owner[layer]
        mine, theirs = self.outlook.holders[self.me, layer], self.outlook.holders[self.other, layer]
        i_own, they_own = owner == self.me, owner == self.other
        for adds in _prefixes(wanted):
            yield Lot(layer, one_adds=adds)
        for drops in _prefixes(unwanted[~i_own[unwanted]]):
            yield Lot(layer, one_drops=drops)
        can_take, can_give = they_own & ~mine, i_own & ~theirs
        takes = [_by_size(order[can_take[order]]) for order in (wanted, calm)]
        gives = [_by_size(order[can_give[order]]) for order in (unwanted, keen)]
        # Whoever gives ownership drops the expert, or keeps a copy.
        seen: set[tuple[tuple[int, ...], ...]] = set()
        for sets in takes:
            for taken in sets.values():
                seen.add((taken, (), taken, (), (), taken))
                seen.add((taken, (), taken, (), (), ()))
        for sets in gives:
            for given in sets.values():
                seen.add(((), given, (), given, given, ()))
                seen.add(((), given, (), (), given, ()))
        for sets_in in takes:
            for sets_out in gives:
                for size in SIZES:
                    if size not in sets_in or size not in sets_out:
                        break
                    taken, given = sets_in[size], sets_out[size]
                    seen.add((taken, given, taken, given, given, taken))
        # What both hold: ownership may pass to the other end, which frees one of them of the duty to hold it.
        shared = mine & theirs
        for drops in _prefixes(unwanted[(shared & i_own)[unwanted]]):
            seen.add(((), drops, (), drops, (), ()))
        for drops in _prefixes(calm[(shared & they_own)[calm]]):
            seen.add((drops, (), (), (), (), drops))
        for lot in sorted(seen):
            yield Lot(layer, *lot)


def _prefixes(order: Ints) -> Iterable[tuple[int, ...]]:
    """The first one, two ... of an order, and all of it; each ascending."""
    return _by_size(order).values()


def _by_size(order: Ints) -> dict[int, tuple[int, ...]]:
    """The same by how many they are."""
    experts: list[int] = order.tolist()
    sets = {size: tuple(sorted(experts[:size])) for size in SIZES if size < len(experts)}
    if experts:
        sets[len(experts)] = tuple(sorted(experts))
    return sets


def apply(lots: Sequence[Lot], one: int, two: int, holders: Holders, owner: Ints) -> None:
    """Carry chosen lots out on a plan, in place."""
    for lot in lots:
        for node, adds, drops, gets in (
            (one, lot.one_adds, lot.one_drops, lot.to_one),
            (two, lot.two_adds, lot.two_drops, lot.to_two),
        ):
            holders[node, lot.layer, list(adds)] = True
            holders[node, lot.layer, list(drops)] = False
            owner[lot.layer, list(gets)] = node
