"""What one node believes when it thinks about the plan: its own demand, its peers' plans, the links between them.

Thinking needs all of it laid out as arrays, over and over and nearly always the same; so they are kept until something
changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from meshmoe.core.ids import NodeId
from meshmoe.placement.bargain import PRICE_SCALE, Lot
from meshmoe.placement.copies import Copies, better_copies
from meshmoe.placement.exchange.config import ExchangeConfig
from meshmoe.placement.exchange.events import Links, PeerPlan
from meshmoe.placement.exchange.messages import BYSTANDERS_MAX
from meshmoe.placement.exchange.plan import Plan
from meshmoe.placement.lots import BYSTANDER_SLOTS, Side
from meshmoe.placement.outlook import Outlook
from meshmoe.placement.sketch import Sketch, shortened, sketch_of, table_of
from meshmoe.placement.table import Table, tabulate
from meshmoe.placement.trace import Trace
from meshmoe.placement.world import ModelShape, NodeSpec


class Standpoint:
    """One node's."""

    def __init__(
        self, config: ExchangeConfig, node: NodeId, shape: ModelShape, spec: NodeSpec, trace: Trace, plan: Plan
    ) -> None:
        """Stand alone: there are no peers yet.

        Args:
            config: The same on all nodes.
            node: This one.
            shape: The model.
            spec: This node's means.
            trace: Its demand.
            plan: Its plan, as it stands at any time.
        """
        self._config, self._node, self._shape, self._spec, self._plan = config, node, shape, spec, plan
        self.peers: Mapping[NodeId, PeerPlan] = {}
        self.links: Links | None = None
        self._table: Table | None = None
        self._short: Table | None = None
        self._outlook: tuple[int, Outlook] | None = None
        self._sketches: dict[NodeId, tuple[Sketch, Table]] = {}
        self._brief: dict[NodeId, Table] = {}
        self.trace(trace)

    def trace(self, trace: Trace, away_s: float = 0.0) -> None:
        """Take in the node's own demand, and what a row sent away costs beside its own time."""
        self._away_s = away_s
        self._trace, self._table, self._short, self._outlook = trace, None, None, None
        self._demand = trace.demand(self._shape.experts)

    def hear(self, peers: Mapping[NodeId, PeerPlan], links: Links) -> None:
        """Take in what gossip tells."""
        self.peers, self.links, self._outlook = dict(peers), links, None
        for gone in [peer for peer in self._sketches if peer not in peers]:
            del self._sketches[gone], self._brief[gone]

    def side(self, peer: NodeId) -> Side:
        """A seat opposite a peer."""
        assert self.links is not None
        return Side.of(
            self.outlook(), self._position(self._node), self._position(peer), self._own_table(), self._move_s(peer)
        )

    def sketch(self, version: int) -> Sketch:
        """This node's demand in short."""
        return sketch_of(version, self._spec, self._short_table())

    def hear_sketch(self, peer: NodeId, sketch: Sketch) -> bool:
        """Take in a peer's demand; whether it is news."""
        if self.sketch_known(peer) == sketch.version:
            return False
        table = table_of(sketch, self._shape)
        if table is not None:
            self._sketches[peer] = sketch, table
            self._brief[peer] = shortened(table, self._shape, BYSTANDER_SLOTS)
        return table is not None

    def sketch_known(self, peer: NodeId) -> int:
        """Version of a peer's sketch; 0 without one."""
        return self._sketches[peer][0].version if peer in self._sketches else 0

    def bystanders(self, peer: NodeId, counted: Collection[NodeId] = ()) -> dict[NodeId, Table]:
        """Third nodes whose demand is known, and whom the peer does not speak for: the nearest ones."""
        assert self.links is not None
        far_s = self.links.call_s[self._position(self._node)]
        known = [name for name in self._sketches if name in self.links.nodes and name not in (peer, *counted)]
        known.sort(key=lambda name: (far_s[self._position(name)], name))
        return {name: self._sketches[name][1] for name in known[:BYSTANDERS_MAX]}

    def prices(
        self,
        side: Side,
        lots: Sequence[Lot],
        *,
        proposer: bool,
        known: Mapping[NodeId, Table],
        counted: Collection[NodeId] = (),
        alone: bool = False,
    ) -> list[int]:
        """What lots are worth to this node and to ``known``; the other end speaks for ``counted``.

        If this node is ``alone`` with them the other end does not price them, so it is counted, too.
        """
        peer = self.links.nodes[side.other] if self.links is not None else None
        if alone and peer in self._sketches:
            known = {**known, peer: self._sketches[peer][1]}
        tables = {self._position(name): table for name, table in known.items()}
        others = [self._position(name) for name in counted if name in self.peers]
        return side.prices(lots, proposer=proposer, known=tables, counted=others, alone=alone)

    def division(self, side: Side, peer: NodeId, known: Collection[NodeId]) -> list[Lot]:
        """Lots towards the best division between this node and a peer that could be found; needs its sketch.

        Those who are ``known`` count, too.
        """
        if peer not in self._sketches:
            return []
        sketch, table = self._sketches[peer]
        room_bytes = sketch.capacity_bytes - int(self._shape.expert_bytes[self.peers[peer].held].sum())
        brief = {self._position(name): self._brief[name] for name in known}
        return side.division(self._short_table(), table, (self._plan.room_bytes, room_bytes), brief)

    def cost(self, side: Side) -> int:
        """What this node's experts cost it now, in nanoseconds a second."""
        return int(side.pricer.total(self._plan.held) * PRICE_SCALE)

    def better_copies(self) -> Copies | None:
        """A choice of copies that is clearly better than the present one."""
        move_s = self._move_s(min(self.peers, default=self._node))
        me, gain_min = self._position(self._node), self._config.gain_min
        return better_copies(self.outlook(), me, self._own_table(), self._spec.capacity_bytes, move_s, gain_min)

    def is_near(self, peer: NodeId) -> bool:
        """Whether there is a link to a peer."""
        assert self.links is not None
        return bool(self.links.near[self._position(self._node), self._position(peer)])

    def promises(self) -> Mapping[NodeId, float]:
        """By peer, calls a second that would be at home if each of the two owned what it calls more often."""
        assert self.links is not None
        outlook, me = self.outlook(), self._position(self._node)
        mine, owner = outlook.demand[me], outlook.owner
        takes = np.flatnonzero((owner >= 0) & (owner != me) & ~self._plan.held)
        owners = owner.ravel()[takes]
        more = mine.ravel()[takes] - outlook.demand.reshape(len(outlook.demand), -1)[owners, takes]
        total = np.zeros(len(outlook.demand))
        np.add.at(total, owners, np.maximum(more, 0.0))
        gives = outlook.demand[:, self._plan.owned] - mine[self._plan.owned]
        total += np.where(outlook.holders[:, self._plan.owned], 0.0, np.maximum(gives, 0.0)).sum(axis=1)
        return dict(zip(self.links.nodes, total.tolist(), strict=True))

    def outlook(self) -> Outlook:
        """All of it as arrays; not to be changed."""
        if self._outlook is None or self._outlook[0] != self._plan.version:
            self._outlook = self._plan.version, self._new_outlook()
        return self._outlook[1]

    def _new_outlook(self) -> Outlook:
        assert self.links is not None
        links, empty = self.links, np.zeros_like(self._plan.held)
        holders, owner = np.zeros((len(links.nodes), *empty.shape), bool), np.full(empty.shape, -1, np.int64)
        demand = np.zeros((len(links.nodes), *empty.shape))
        for position, name in enumerate(links.nodes):
            if name in self.peers:
                peer = self.peers[name]
                holders[position], demand[position] = peer.held, peer.demand
                owner[peer.owned] = position
        me = self._position(self._node)
        holders[me], demand[me] = self._plan.held, self._demand
        owner[self._plan.owned] = me
        byte_s = links.byte_s
        if self._away_s:
            byte_s = byte_s.copy()
            byte_s[me] += self._away_s / (2 * self._shape.row_bytes)
        time_s = links.call_s + 2 * self._shape.row_bytes * byte_s
        np.fill_diagonal(time_s, 0.0)
        return Outlook(self._shape, time_s, byte_s, links.row_s, holders, owner, demand)

    def _own_table(self) -> Table:
        if self._table is None:
            self._table = tabulate(self._shape, self._spec, self._trace)
        return self._table

    def _short_table(self) -> Table:
        if self._short is None:
            self._short = shortened(self._own_table(), self._shape)
        return self._short

    def _position(self, name: NodeId) -> int:
        assert self.links is not None
        return self.links.nodes.index(name)

    def _move_s(self, peer: NodeId) -> float:
        assert self.links is not None
        byte_s = self.links.byte_s[self._position(self._node), self._position(peer)]
        return float(byte_s) / self._config.horizon_s
