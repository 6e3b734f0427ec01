"""meshmoe's own policy: guardians, each node's own choice, and pairwise exchange until nobody gains.

Source: this project (DESIGN, section 5; docs/placement.md). The same functions as in the live exchange
(`meshmoe.placement.exchange`), without its messages: pairs bargain in turn, each with the plan as it then stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meshmoe.placement.bargain import settle
from meshmoe.placement.lots import Outlook, Side, apply
from meshmoe.placement.policies.base import demands, layer_bytes, no_holders
from meshmoe.placement.pricing import Pricer, fill
from meshmoe.placement.seed import guardian_owners
from meshmoe.placement.trace import Floats, Ints
from meshmoe.placement.world import Holders, World

ROUNDS_MAX = 40


@dataclass(frozen=True)
class Negotiation:
    """How a negotiation went.

    Attributes:
        holders: What it ended with.
        owner: Of every expert.
        rounds: In each of which every node could bargain once as a proposer.
        exchanges: Bargains that changed something.
        moves: Experts that began to be held somewhere, over all exchanges.
    """

    holders: Holders
    owner: Ints
    rounds: int
    exchanges: int
    moves: int


class Negotiated:
    """meshmoe."""

    name = "meshmoe"

    def __init__(self, *, neighbours_only: bool = False, horizon_s: float = 3600.0, gain_min: float = 1e-3) -> None:
        """Choose the rules.

        Args:
            neighbours_only: Bargain over direct links only.
            horizon_s: Over which a move must repay its bytes.
            gain_min: Hysteresis: the least gain of an exchange, as a share of the two ends' cost.
        """
        self._near, self._horizon_s, self._gain_min = neighbours_only, horizon_s, gain_min

    def place(self, world: World) -> Holders:
        """Negotiate from the guardians."""
        return self.negotiate(world).holders

    def negotiate(self, world: World, start: tuple[Holders, Ints] | None = None) -> Negotiation:
        """Negotiate.

        Args:
            world: For its traces and links.
            start: Holders and owners to begin with; the guardians' if None.
        """
        demand = demands(world)
        if start is None:
            owner = guardian_owners(world.shape, world.nodes, world.capacity_bytes)
            holders = no_holders(world)
            for node in range(len(world.nodes)):
                holders[node] = owner == node
        else:
            holders, owner = start[0].copy(), start[1].copy()
        first = holders.copy()
        for node in range(len(world.nodes)):
            self._refill(world, node, holders, owner, demand)
        moves = int((holders & ~first).sum())
        exchanges, rounds = 0, 0
        quiet: set[tuple[int, int]] = set()
        for rounds in range(1, ROUNDS_MAX + 1):
            changed = 0
            for one, two in self._pairs(world, rounds):
                if (one, two) in quiet:
                    continue
                before = holders.copy()
                if self._bargain(world, one, two, holders, owner, demand):
                    changed += 1
                    for node in (one, two):
                        self._refill(world, node, holders, owner, demand)
                    quiet = {pair for pair in quiet if not {one, two} & set(pair)}
                    moves += int((holders & ~before).sum())
                else:
                    quiet.add((one, two))
            exchanges += changed
            if not changed:
                break
        return Negotiation(holders, owner, rounds, exchanges, moves)

    def _pairs(self, world: World, number: int) -> list[tuple[int, int]]:
        count = len(world.nodes)
        pairs = [(a, b) for a in range(count) for b in range(count) if a != b and (world.near[a, b] or not self._near)]
        order = np.random.default_rng(number).permutation(len(pairs))
        return [pairs[i] for i in order]

    def _outlook(self, world: World, holders: Holders, owner: Ints, demand: Floats) -> Outlook:
        time_s = world.call_s(1.0) + 2 * world.shape.row_bytes * world.byte_s
        np.fill_diagonal(time_s, 0.0)
        row_s = np.array([spec.row_s for spec in world.specs])
        return Outlook(world.shape, time_s, world.byte_s, row_s, holders, owner, demand)

    def _room(self, world: World, node: int, held: Holders) -> int:
        return int(world.capacity_bytes[node] - world.shape.expert_bytes[held[node]].sum())

    def _bargain(self, world: World, one: int, two: int, holders: Holders, owner: Ints, demand: Floats) -> bool:
        outlook = self._outlook(world, holders, owner, demand)
        move_s = float(world.byte_s[one, two]) / self._horizon_s
        sides = [
            Side.of(outlook, me, other, world.specs[me], world.traces[me], move_s)
            for me, other in ((one, two), (two, one))
        ]
        lots = [*sides[0].propose(), *sides[1].own_lots()]
        priced = [
            sum(both)
            for both in zip(sides[0].prices(lots, proposer=True), sides[1].prices(lots, proposer=False), strict=True)
        ]
        rooms = (self._room(world, one, holders), self._room(world, two, holders))
        chosen = settle(lots, priced, layer_bytes(world.shape), rooms)
        gain = sum(priced[i] for i in chosen) / 1e9
        cost = sum(
            float(side.pricer.cost(layer, holders[side.me, layer]))
            for side in sides
            for layer in range(world.shape.layers)
        )
        if not chosen or gain <= self._gain_min * cost:
            return False
        apply([lots[i] for i in chosen], one, two, holders, owner)
        return True

    def _refill(self, world: World, node: int, holders: Holders, owner: Ints, demand: Floats) -> bool:
        """A node's own choice of copies; adopted where it is better than what it has."""
        outlook = self._outlook(world, holders, owner, demand)
        pricer = Pricer(world.shape, world.specs[node], world.traces[node], outlook.branches(node))
        owned = outlook.owned(node)
        room = int(world.capacity_bytes[node] - world.shape.expert_bytes[owned].sum())
        if room < layer_bytes(world.shape).min():
            return False
        held = fill(pricer, owned, room)
        layers = range(world.shape.layers)
        now, then = (sum(float(pricer.cost(i, mask[i])) for i in layers) for mask in (holders[node], held))
        charge = float((outlook.regret(node) * (holders[node] & ~held)).sum())
        if now - then - charge <= self._gain_min * now:
            return False
        holders[node] = held
        return True
