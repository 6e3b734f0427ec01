"""What one node believes when it thinks about the plan: its own demand, its peers' plans, the links between them.

Thinking needs all of it laid out as arrays, over and over and nearly always the same; so they are kept until something
changes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from meshmoe.core.ids import NodeId
from meshmoe.placement.bargain import PRICE_SCALE
from meshmoe.placement.copies import Copies, better_copies
from meshmoe.placement.exchange.config import ExchangeConfig
from meshmoe.placement.exchange.events import Links, PeerPlan
from meshmoe.placement.exchange.plan import Plan
from meshmoe.placement.lots import Outlook, Side
from meshmoe.placement.table import Table, tabulate
from meshmoe.placement.trace import Floats, Trace
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
        self._outlook: tuple[int, Outlook] | None = None
        self.trace(trace)

    def trace(self, trace: Trace) -> None:
        """Take in the node's own demand."""
        self._trace, self._table, self._outlook = trace, None, None
        self._demand = trace.demand(self._shape.experts)

    def hear(self, peers: Mapping[NodeId, PeerPlan], links: Links) -> None:
        """Take in what gossip tells."""
        self.peers, self.links, self._outlook = dict(peers), links, None

    def side(self, peer: NodeId) -> Side:
        """A seat opposite a peer."""
        assert self.links is not None
        return Side.of(
            self.outlook(), self._position(self._node), self._position(peer), self._own_table(), self._move_s(peer)
        )

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

    def promise(self, peer: NodeId) -> float:
        """Calls a second that would be at home if each of the two owned what it calls more often than the other."""
        theirs = self.peers[peer]
        takes = (theirs.owned & ~self._plan.held).nonzero()
        gives = (self._plan.owned & ~theirs.held).nonzero()
        more: Floats = self._demand[takes] - theirs.demand[takes]
        less: Floats = theirs.demand[gives] - self._demand[gives]
        return float(np.maximum(more, 0).sum() + np.maximum(less, 0).sum())

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
        time_s = links.call_s + 2 * self._shape.row_bytes * links.byte_s
        np.fill_diagonal(time_s, 0.0)
        return Outlook(self._shape, time_s, links.byte_s, links.row_s, holders, owner, demand)

    def _own_table(self) -> Table:
        if self._table is None:
            self._table = tabulate(self._shape, self._spec, self._trace)
        return self._table

    def _position(self, name: NodeId) -> int:
        assert self.links is not None
        return self.links.nodes.index(name)

    def _move_s(self, peer: NodeId) -> float:
        assert self.links is not None
        byte_s = self.links.byte_s[self._position(self._node), self._position(peer)]
        return float(byte_s) / self._config.horizon_s
