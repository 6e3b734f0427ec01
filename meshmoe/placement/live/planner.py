"""Placement in a running mesh: the exchange, what it needs before it can begin, and what comes after it. Without I/O.

    asleep --demand here, or a plan of another node's--> awake

*Asleep* there is no demand worth speaking of, and weights follow the guardian rule. *Awake* a node has a plan, tells it
by gossip, and exchanges. All nodes of a mesh wake one after the other within a gossip's time, with empty plans.

*Owners.* The exchange keeps every expert with one owner, but somebody must be the first one, and owners die. So each
node looks for experts without an owner in its view: after a grace it adopts those that `missing_owners` names it for,
which names the same nodes wherever views are the same. Where views differ, two may adopt an expert, or nobody: if two
own it for longer than the grace, all but the one with the smallest name disown it. That is all there is to starting,
joining, dying, and two halves of a mesh that meet again. These are plans: custody looks after the weights meanwhile.

*Coming to rest.* When every expert has one owner and nobody knows of an exchange that would gain, for a while, weights
should move: `Settled`. A node that is about to think otherwise, because its use begins or changes just now, does not
rest: else weights would move for each node that has noticed a change that all see.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip import NodeView
from meshmoe.placement.exchange import (
    ExchangeMachine,
    Heard,
    Links,
    OwnTrace,
    PeerPlan,
    PeersChanged,
    Repair,
    Wake,
)
from meshmoe.placement.live.config import LiveConfig
from meshmoe.placement.live.events import Learning, PlannerEffect, PlannerEvent, Seen, Settled, Tell
from meshmoe.placement.live.plans import PlanNews, PlanReader
from meshmoe.placement.seed import missing_owners
from meshmoe.placement.table import Mask
from meshmoe.placement.trace import Trace, no_steps
from meshmoe.placement.world import ModelShape, NodeSpec

LOOK_S = 1.0
"""How often owners are looked after at least."""


class Planner:
    """One node's. See the module's text."""

    def __init__(
        self,
        config: LiveConfig,
        node: NodeId,
        shape: ModelShape,
        spec: NodeSpec,
        first_id: int,
        rng: random.Random,
        now: float,
    ) -> None:
        """Start asleep.

        Args:
            config: The same on all nodes.
            node: This one.
            shape: The model.
            spec: This node's means; of its capacity one place is kept free if it cannot hold everything.
            first_id: Greater than all numbers of exchanges that earlier lives of this node used.
            rng: Of the exchange.
            now: Monotonic seconds.
        """
        self._config, self._node, self._shape, self._rng = config, node, shape, rng
        self._spec = replace(spec, capacity_bytes=self._usable(spec.capacity_bytes))
        self._first_id = first_id
        self._trace = Trace(no_steps(shape.layers), no_steps(shape.layers))
        self._away_s = 0.0
        self._reader, self._news = PlanReader(shape), PlanNews()
        self._seen = Seen({}, _no_links(node))
        self._peers: dict[NodeId, PeerPlan] = {}
        self._wrong_since_s = np.full(shape.expert_bytes.shape, np.inf)
        self._look_s = now
        self._rest_since_s = np.inf
        self._changed_s = np.inf
        """When the plans first became other than what weights follow."""
        self._followed: tuple[tuple[NodeId, int], ...] = ()
        self.machine: ExchangeMachine | None = None
        self._learning = False
        self.may_wake = True
        """Whether the runtime is prepared for decisions."""
        self.wants_to_wake = False
        """Whether it should prepare for them now."""

    def measured(self, *, expert_s: float, row_s: float) -> None:
        """Set what this node takes to compute an expert; of no effect once it is awake."""
        self._spec = replace(self._spec, expert_s=expert_s, row_s=row_s)

    @property
    def awake(self) -> bool:
        """Whether this node has a plan."""
        return self.machine is not None

    def next_deadline(self) -> float:
        """When to `Wake` next."""
        if self.machine is None:
            return float("inf")
        return min(self._look_s, self.machine.next_deadline())

    def handle(self, event: PlannerEvent, now: float) -> list[PlannerEffect]:
        """Take in one event.

        Args:
            event: What happened.
            now: Monotonic seconds, never less than before.

        Returns:
            What to do about it, in order.
        """
        out: list[PlannerEffect] = []
        match event:
            case Seen():
                self._seen = event
                self._peers = self._reader.read(event.nodes)
            case OwnTrace():
                self._trace, self._away_s = event.trace, event.away_s
            case Learning():
                self._learning = event.on
            case Heard() | Wake():
                pass
        if self.machine is None:
            self.wants_to_wake = self._should_wake()
            if not self.wants_to_wake or not self.may_wake:
                return []
            self._wake(now)
        machine = self.machine
        assert machine is not None
        if isinstance(event, Seen):
            out += machine.handle(PeersChanged(self._peers, self._links()), now)
        elif not isinstance(event, Learning):
            out += machine.handle(event, now)
        self._look_after_owners(machine, now, out)
        self._settle(machine, now, out)
        news = self._news.of(machine.plan, quiet=self._is_quiet(machine) and self._covered())
        if news:
            out.append(Tell(news))
        self._look_s = now + LOOK_S
        return out

    # -- waking ------------------------------------------------------------

    def _usable(self, capacity_bytes: int) -> int:
        """One place stays free on every node that cannot hold all: full nodes could not hand each other anything."""
        if capacity_bytes >= self._shape.total_bytes:
            return capacity_bytes
        return max(0, capacity_bytes - int(self._shape.expert_bytes.max()))

    def _usable_of(self, view: NodeView) -> int:
        return self._usable(view.info.capacity_bytes) if view.info is not None else 0

    def _should_wake(self) -> bool:
        """Whether somebody has demand, and there are peers with room for a plan together with this node."""
        told = any(view.stamp is not None for view in self._seen.nodes.values())
        if not self._seen.nodes or not (told or self._trace.steps_per_s > 0):
            return False
        usable_bytes = self._spec.capacity_bytes + sum(self._usable_of(view) for view in self._seen.nodes.values())
        return usable_bytes >= self._shape.total_bytes

    def _wake(self, now: float) -> None:
        nothing = np.zeros(self._shape.expert_bytes.shape, bool)
        self.machine = ExchangeMachine(
            self._config.exchange,
            self._node,
            self._shape,
            self._spec,
            self._trace,
            nothing,
            nothing,
            self._first_id,
            self._rng,
            now,
        )
        self.machine.handle(OwnTrace(self._trace, self._away_s), now)
        self.machine.handle(PeersChanged(self._peers, self._links()), now)

    def _links(self) -> Links:
        """Those between this node and peers that have a plan."""
        all_ = self._seen.links
        places = [i for i, node in enumerate(all_.nodes) if node == self._node or node in self._peers]
        grid = np.ix_(places, places)
        nodes = tuple(all_.nodes[i] for i in places)
        return Links(nodes, all_.call_s[grid], all_.byte_s[grid], all_.row_s[places], all_.near[grid])

    # -- owners ------------------------------------------------------------

    def _owners(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """How many nodes own each expert: ``[layers, experts]``."""
        assert self.machine is not None
        count = self.machine.plan.owned.astype(np.int64)
        for peer in self._peers.values():
            count += peer.owned
        return count

    def _covered(self) -> bool:
        return bool((self._owners() == self._shape.exists).all())

    def _look_after_owners(self, machine: ExchangeMachine, now: float, out: list[PlannerEffect]) -> None:
        owners = self._owners()
        wrong = owners != self._shape.exists
        self._wrong_since_s = np.where(wrong, np.minimum(self._wrong_since_s, now), np.inf)
        long = self._wrong_since_s <= now - self._config.grace_s
        if not long.any() or not machine.idle:
            return
        adopt = self._to_adopt(machine, long & (owners == 0))
        disown = np.zeros_like(adopt)
        for name, peer in self._peers.items():
            if name < self._node:
                disown |= peer.owned & machine.plan.owned & long
        if adopt.any() or disown.any():
            out += machine.handle(Repair(adopt, disown), now)

    def _to_adopt(self, machine: ExchangeMachine, missing: Mask) -> Mask:
        if not missing.any():
            return missing
        nodes = [self._node, *self._peers]
        usable = [self._spec.capacity_bytes, *(self._usable_of(self._seen.nodes[peer]) for peer in self._peers)]
        plans = [(machine.plan.held, machine.plan.owned), *((p.held, p.owned) for p in self._peers.values())]
        sizes = self._shape.expert_bytes
        room = [bytes_ - int(sizes[owned].sum()) for bytes_, (_, owned) in zip(usable, plans, strict=True)]
        held = np.stack([held for held, _ in plans])
        adopt: Mask = missing_owners(self._shape, nodes, np.array(room), missing, held) == 0
        return adopt

    # -- coming to rest ------------------------------------------------------------

    def _settle(self, machine: ExchangeMachine, now: float, out: list[PlannerEffect]) -> None:
        plans = tuple(sorted([(self._node, machine.plan.version), *((n, p.version) for n, p in self._peers.items())]))
        if plans == self._followed:
            self._changed_s = self._rest_since_s = np.inf
            return
        self._changed_s = min(self._changed_s, now)
        if not self._covered():
            self._rest_since_s = np.inf
            return
        stamps = [view.stamp for view in self._seen.nodes.values() if view.stamp is not None]
        quiet = self._is_quiet(machine) and all(stamp.quiet for stamp in stamps)
        self._rest_since_s = min(self._rest_since_s, now) if quiet else np.inf
        rested = now - self._rest_since_s >= self._config.settle_s
        if machine.idle and (rested or now - self._changed_s >= self._config.patience_s):
            self._followed, self._changed_s, self._rest_since_s = plans, np.inf, np.inf
            out.append(Settled(self._wants(machine), self._holders(machine)))

    def _is_quiet(self, machine: ExchangeMachine) -> bool:
        return machine.quiet and not self._learning

    def _wants(self, machine: ExchangeMachine) -> tuple[ExpertId, ...]:
        plan = machine.plan
        everything = self._spec.capacity_bytes >= self._shape.total_bytes
        plan_held = self._shape.exists if everything else plan.held
        return (*_experts(plan.owned), *_experts(plan_held & ~plan.owned))

    def _holders(self, machine: ExchangeMachine) -> Mapping[ExpertId, tuple[NodeId, ...]]:
        """Owners, then copies; which copies come first goes round with the expert, to spread what is promised."""
        plans = {name: (peer.held, peer.owned) for name, peer in self._peers.items()}
        plans[self._node] = machine.plan.held, machine.plan.owned
        names = sorted(plans)
        held = np.stack([plans[name][0] for name in names])
        owned = np.stack([plans[name][1] for name in names])
        holders = {}
        for layer, index in _experts(self._shape.exists):
            turn = (layer + index) % len(names)
            places = [*range(turn, len(names)), *range(turn)]
            copies = [i for i in places if held[i, layer, index] and not owned[i, layer, index]]
            holders[ExpertId(layer, index)] = tuple(
                names[i] for i in [*np.flatnonzero(owned[:, layer, index]).tolist(), *copies]
            )
        return holders


def _experts(mask: Mask) -> list[ExpertId]:
    return [ExpertId(layer, index) for layer, index in np.argwhere(mask).tolist()]


def _no_links(node: NodeId) -> Links:
    zero = np.zeros((1, 1))
    return Links((node,), zero, zero, np.zeros(1), np.zeros((1, 1), bool))
