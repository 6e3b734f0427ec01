"""Runs placement on a node: feeds the planner with demand, view and messages, and carries out what it asks for.

The planner thinks in a thread of its own, one event after the other, so that the loop is never held up: a decision may
take a second on a slow box with a large model. What it reads was copied for it, or never changes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.core.links import LinkShape
from meshmoe.engine.routing_log import Routed
from meshmoe.gossip import NodeView
from meshmoe.node.expert_times import ExpertTimes
from meshmoe.node.gossip_driver import GossipDriver
from meshmoe.node.mesh import RATE_UNKNOWN_BYTES_PER_S, RTT_UNKNOWN_S, Mesh
from meshmoe.node.messenger import Messenger
from meshmoe.node.preparing import prepare
from meshmoe.node.status import ExchangeStatus
from meshmoe.placement import exchange
from meshmoe.placement.exchange import EXCHANGE_MESSAGES, Heard, PlanChanged, SendTo, Wake
from meshmoe.placement.live import Planner, PlannerEvent, Seen, Settled, Tell
from meshmoe.placement.live.demand import DemandKeeper
from meshmoe.placement.live.drafts import DraftsSeen
from meshmoe.placement.live.observer import Observer
from meshmoe.transport.base import Parcel
from meshmoe.wire.codec import Decoded

logger = logging.getLogger(__name__)

INBOX_MAX = 256
"""Messages of peers that may wait; the exchange repeats what matters, so more are dropped and counted."""

EXCHANGES_KEPT = 32
"""Changes of the plan that the status can show."""

OBSERVE_S = 1.0
"""How often demand is taken in and told."""

VIEW_S = 0.25
"""How often the planner hears of a changing view at most."""

CALL_S = 150e-6
"""Of a call to a peer beside the link and the computing: messages packed, sent and unpacked at both ends."""


class PlacementDriver:
    """Made when the node listens; `begin` gives it the planner when the model is known."""

    def __init__(
        self, messenger: Messenger, gossip: GossipDriver, mesh: Mesh, emulated: Mapping[NodeId, LinkShape]
    ) -> None:
        """Make one; ``emulated`` are links whose rates are known because this node emulates them."""
        self._messenger = messenger
        self._gossip = gossip
        self._mesh = mesh
        self._emulated = emulated
        self._inbox: deque[PlannerEvent] = deque()
        self._woken = trio.Event()
        self._planner: Planner | None = None
        self.exchanges: deque[ExchangeStatus] = deque(maxlen=EXCHANGES_KEPT)
        self.on_settled: Callable[[Settled], None] = lambda _: None
        self.take_routed: Callable[[], list[Routed]] = list
        self.drafts_seen: Callable[[], DraftsSeen | None] = lambda: None
        self._far_s = 0.0
        self.quiet = True
        self.plan_version = 0
        self.thought_s = 0.0
        """Longest time that one event has taken the planner."""
        for message_type in EXCHANGE_MESSAGES:
            messenger.on(message_type, self._received)

    def begin(self, planner: Planner, keeper: DemandKeeper, expert_bytes: np.ndarray, row_s: float) -> None:
        """Hand over what a node with a model has; `run` comes next.

        Args:
            planner: Asleep.
            keeper: Of this node's demand.
            expert_bytes: ``[layers, experts]``.
            row_s: Of this node, for a further row of an expert.
        """
        self._planner, self.keeper = planner, keeper
        self._expert_bytes, self._row_s = expert_bytes, row_s
        self._observer = Observer(keeper, *expert_bytes.shape)

    def measured(self, times: ExpertTimes) -> None:
        """Reckon with what was measured of this node, if it is not too late: a plan that is begun keeps its prices."""
        assert self._planner is not None
        self._row_s = times.row_s
        self._planner.measured(expert_s=times.expert_s, row_s=times.row_s)

    @property
    def awake(self) -> bool:
        """Whether weights follow the exchange, or will when it has settled."""
        return self.plan_version > 0

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._observe)
            nursery.start_soon(self._follow_view)
            await self._work()

    async def _work(self) -> None:
        planner, limiter = self._planner, trio.CapacityLimiter(1)
        assert planner is not None
        planner.may_wake = False
        while True:
            if not self._inbox:
                self._woken = trio.Event()
                with trio.move_on_after(max(0.0, planner.next_deadline() - time.monotonic())):
                    await self._woken.wait()
            event: PlannerEvent = self._inbox.popleft() if self._inbox else Wake()
            started_s = time.monotonic()
            effects = await trio.to_thread.run_sync(partial(planner.handle, event, started_s), limiter=limiter)
            self.thought_s = max(self.thought_s, time.monotonic() - started_s)
            if planner.machine is not None:
                self.quiet, self.plan_version = planner.machine.quiet, planner.machine.plan.version
            if planner.wants_to_wake and not planner.may_wake:
                await prepare()
                planner.may_wake = True
                self._feed(Wake())
            for effect in effects:
                match effect:
                    case SendTo(peer=peer, message=message):
                        self._messenger.try_post(peer, Lane.CONTROL, message)
                    case Tell(values=values):
                        self._gossip.publish(*values)
                    case PlanChanged():
                        self._note(effect)
                    case Settled():
                        logger.info("plans have settled: %d experts are to be here", len(effect.wants))
                        self.on_settled(effect)

    def _feed(self, event: PlannerEvent) -> None:
        self._inbox.append(event)
        self._woken.set()

    # -- what goes in ------------------------------------------------------------

    async def _observe(self) -> None:
        """Take in demand; tell it to the mesh; let the planner know when it has changed."""
        while True:
            await trio.sleep(OBSERVE_S)
            for routed in self.take_routed():
                self.keeper.add(routed.sets, routed.at_s, decode=routed.decode)
                await trio.lowlevel.checkpoint()
            found = self._observer.look(time.monotonic(), self.drafts_seen(), self._far_s)
            self._gossip.publish(*found.news)
            for event in found.events:
                self._feed(event)

    async def _follow_view(self) -> None:
        seen = -1
        while True:
            version = self._gossip.view.version
            if version != seen:
                seen = version
                nodes = {node: view for node, view in self._mesh.serving().items() if _serves(view)}
                if not any(isinstance(event, Seen) for event in self._inbox):
                    self._feed(Seen(nodes, self._links(nodes)))
            await trio.sleep(VIEW_S)
            if self._gossip.view.version == seen:
                await self._mesh.wait_changed()

    def _links(self, nodes: Mapping[NodeId, NodeView]) -> exchange.Links:
        """Times between all nodes: from this one as measured here, between others as they tell."""
        me = self._mesh.node
        names = (me, *sorted(nodes))
        count = len(names)
        rtt_s, byte_s = np.full((count, count), RTT_UNKNOWN_S), np.full((count, count), 1 / RATE_UNKNOWN_BYTES_PER_S)
        near = ~np.eye(count, dtype=bool)
        there_s, row_s = np.zeros(count), np.full(count, self._row_s)
        for i, name in enumerate(names):
            info, load = (nodes[name].info, nodes[name].load) if name != me else (None, None)
            queue_us = load.queue_us if load is not None else 0
            there_s[i] = CALL_S + ((info.expert_call_us if info is not None else 0) + queue_us) / 1e6
            if info is not None and info.expert_rows_per_s:
                row_s[i] = 1 / info.expert_rows_per_s
            for j, other in enumerate(names):
                if name == me and other != me:
                    rtt_s[i, j], byte_s[i, j] = self._mesh.rtt_s(other), 1 / (self._rate(other) or 1 / byte_s[i, j])
                    near[i, j] = near[j, i] = not self._emulated or other in self._emulated
                elif name != me and other in nodes[name].links:
                    link = nodes[name].links[other]
                    rtt_s[i, j] = link.rtt_us / 1e6
                    byte_s[i, j] = 1 / (link.rate_bytes_per_s or 1 / byte_s[i, j])
        np.fill_diagonal(rtt_s, 0.0)
        np.fill_diagonal(byte_s, 0.0)
        self._far_s = float(np.median(rtt_s[0, 1:])) if count > 1 else 0.0
        return exchange.Links(names, rtt_s + there_s[None, :], byte_s, row_s, near)

    def _rate(self, peer: NodeId) -> float | None:
        """Bytes a second to a peer: as emulated, else as transfers have shown."""
        if peer in self._emulated:
            return self._emulated[peer].rate_bytes_per_s
        return self._mesh.rates.bytes_per_s(peer)

    def _received(self, parcel: Parcel, decoded: Decoded) -> None:
        if self._planner is None or len(self._inbox) >= INBOX_MAX:
            self._messenger.faults["exchange_inbox_full"] += self._planner is not None
            return
        self._feed(Heard(NodeId(parcel.sender), decoded.message))

    # -- what comes out ------------------------------------------------------------

    def _note(self, change: PlanChanged) -> None:
        """Keep for the status why experts move."""
        moved_bytes = sum(int(self._expert_bytes[expert.layer, expert.index]) for expert in change.adds)
        rate = (self._rate(change.partner) if change.partner is not None else None) or RATE_UNKNOWN_BYTES_PER_S
        tokens_per_s = self._tokens_per_s(change.partner)
        self.exchanges.append(
            ExchangeStatus(
                at_s=time.time(),
                partner=change.partner,
                plan_version=change.version,
                adds=[str(expert) for expert in change.adds],
                drops=[str(expert) for expert in change.drops],
                gained=len(change.gained),
                given=len(change.given),
                gain_ms_per_token=change.gain_ms_per_s / tokens_per_s if tokens_per_s else 0.0,
                cost_bytes=moved_bytes,
                cost_s=moved_bytes / rate,
            )
        )

    def _tokens_per_s(self, partner: NodeId | None) -> float:
        """What this node and its partner decode and read together, as far as this node knows."""
        own = float(self._observer.demand.sum())
        view = self._gossip.view.nodes.get(partner) if partner is not None else None
        theirs = sum(sum(view.demand_per_s(layer)) for layer in view.demand) if view is not None else 0.0
        return (own + theirs) / max(1.0, self.keeper.calls_a_token)


def _serves(view: NodeView) -> bool:
    return view.info is not None and view.info.state == "serving" and view.info.capacity_bytes > 0
