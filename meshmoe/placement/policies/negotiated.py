"""meshmoe's own policy: each node's own choice, guardians for coverage, and pairwise exchange until nobody gains.

Source: this project (DESIGN, section 5; docs/placement.md). The same functions as in the live exchange
(`meshmoe.placement.exchange`), without its messages: pairs bargain in turn, each with the plan as it then stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meshmoe.placement.bargain import PRICE_SCALE, settle
from meshmoe.placement.copies import better_copies
from meshmoe.placement.lots import BYSTANDER_SLOTS, Side, apply
from meshmoe.placement.outlook import Outlook
from meshmoe.placement.policies.base import demands, layer_bytes
from meshmoe.placement.seed import missing_owners
from meshmoe.placement.sketch import shortened
from meshmoe.placement.table import Mask, Table, tabulate
from meshmoe.placement.trace import Ints
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

    def __init__(
        self,
        *,
        neighbours_only: bool = False,
        horizon_s: float = 3600.0,
        gain_min: float = 1e-4,
    ) -> None:
        """Choose the rules.

        Args:
            neighbours_only: Bargain over direct links only.
            horizon_s: Over which a move must repay its bytes.
            gain_min: Hysteresis: the least gain of an exchange, as a share of the two ends' cost.
        """
        self._near, self._horizon_s, self._gain_min = neighbours_only, horizon_s, gain_min

    def place(self, world: World) -> Holders:
        """Negotiate from each node's own choice."""
        return self.negotiate(world).holders

    def negotiate(self, world: World, start: tuple[Holders, Ints] | None = None) -> Negotiation:
        """Negotiate.

        Args:
            world: For its traces and links.
            start: Holders and owners to begin with; each node's own choice if None.
        """
        table = self._begin(world, start or self._seed(world))
        exchanges, rounds = 0, 0
        quiet: set[tuple[int, int]] = set()
        for rounds in range(1, ROUNDS_MAX + 1):
            changed = 0
            for one, two in self._pairs(world, rounds):
                if (one, two) in quiet:
                    continue
                if table.bargain(one, two):
                    changed += 1
                    for node in (one, two):
                        table.refill(node)
                    quiet = {pair for pair in quiet if not {one, two} & set(pair)}
                else:
                    quiet.add((one, two))
            exchanges += changed
            if not changed:
                break
        return Negotiation(table.outlook.holders, table.outlook.owner, rounds, exchanges, table.moves)

    def _begin(self, world: World, start: tuple[Holders, Ints]) -> _Table:
        table = _Table(world, start, self._partners(world), self._horizon_s, self._gain_min)
        for node in range(len(world.nodes)):
            table.refill(node)
        return table

    def _seed(self, world: World) -> tuple[Holders, Ints]:
        """As the running node begins: each node chooses what it wants most, then what nobody owns is adopted."""
        shape, nodes = world.shape, len(world.nodes)
        nothing = np.zeros((nodes, *shape.expert_bytes.shape), bool)
        held = self._begin(world, (nothing, np.full(shape.expert_bytes.shape, -1))).outlook.holders.copy()
        owner = missing_owners(shape, world.nodes, world.capacity_bytes, shape.exists, held)
        if ((owner < 0) & shape.exists).any():
            raise ValueError("the nodes cannot hold the model together")
        for node, capacity_bytes in enumerate(world.capacity_bytes):
            everything = held[node] | (owner == node)
            fits = shape.expert_bytes[everything].sum() <= capacity_bytes
            held[node] = everything if fits else owner == node  # copies go where an owner needs room
        return held, owner

    def _partners(self, world: World) -> Mask:
        """Who bargains with whom: ``[nodes, nodes]``."""
        partners: Mask = world.near.copy() if self._near else ~np.eye(len(world.nodes), dtype=bool)
        return partners

    def _pairs(self, world: World, number: int) -> list[tuple[int, int]]:
        pairs: list[tuple[int, int]] = [(a, b) for a, b in np.argwhere(self._partners(world)).tolist()]
        order = np.random.default_rng(number).permutation(len(pairs))
        return [pairs[i] for i in order]


class _Table:
    """At which all sit: the plan as it stands, which everybody knows exactly."""

    def __init__(
        self, world: World, start: tuple[Holders, Ints], partners: Mask, horizon_s: float, gain_min: float
    ) -> None:
        self._world, self._horizon_s, self._gain_min = world, horizon_s, gain_min
        self._traces = [
            tabulate(world.shape, spec, trace) for spec, trace in zip(world.specs, world.traces, strict=True)
        ]
        time_s = world.call_s(1.0) + 2 * world.shape.row_bytes * world.byte_s
        np.fill_diagonal(time_s, 0.0)
        row_s = np.array([spec.row_s for spec in world.specs])
        self.outlook = Outlook(
            world.shape, time_s, world.byte_s, row_s, start[0].copy(), start[1].copy(), demands(world)
        )
        self._partners = [set(np.flatnonzero(row).tolist()) for row in partners]
        self._short = [shortened(table, world.shape) for table in self._traces]
        self._brief = [shortened(table, world.shape, BYSTANDER_SLOTS) for table in self._short]
        self.moves = 0

    def refill(self, node: int) -> None:
        """Let a node choose its copies."""
        capacity_bytes = self._world.specs[node].capacity_bytes
        found = better_copies(self.outlook, node, self._traces[node], capacity_bytes, 0.0, self._gain_min)
        if found is not None:
            self.moves += int((found.held & ~self.outlook.holders[node]).sum())
            self.outlook.holders[node] = found.held

    def _known(self, node: int) -> dict[int, Table]:
        """The demand of those with whom a node bargains itself."""
        return {other: short for other, short in enumerate(self._short) if other in self._partners[node]}

    def bargain(self, one: int, two: int) -> bool:
        """Let two nodes bargain; whether that changed anything."""
        outlook, shape = self.outlook, self._world.shape
        move_s = float(self._world.byte_s[one, two]) / self._horizon_s
        sides = [Side.of(outlook, me, other, self._traces[me], move_s) for me, other in ((one, two), (two, one))]
        taken = [int(shape.expert_bytes[outlook.holders[node]].sum()) for node in (one, two)]
        rooms = [
            self._world.specs[node].capacity_bytes - bytes_ for node, bytes_ in zip((one, two), taken, strict=True)
        ]
        known = [self._known(node) for node in (one, two)]
        brief = {node: self._brief[node] for node in known[0]}
        division = sides[0].division(self._short[one], self._short[two], (rooms[0], rooms[1]), brief)
        lots = [*sides[0].propose(), *division, *sides[1].own_lots()]
        ones = sides[0].prices(lots, proposer=True, known=known[0])
        twos = sides[1].prices(lots, proposer=False, known=known[1], counted=known[0])
        prices = [sum(both) for both in zip(ones, twos, strict=True)]
        chosen = settle(lots, prices, layer_bytes(shape), (rooms[0], rooms[1]))
        cost = sum(side.pricer.total(outlook.holders[side.me]) for side in sides)
        if sum(prices[i] for i in chosen) <= self._gain_min * cost * PRICE_SCALE:
            return False
        apply([lots[i] for i in chosen], one, two, outlook.holders, outlook.owner)
        self.moves += sum(len(lots[i].one_adds) + len(lots[i].two_adds) for i in chosen)
        return True
