"""SWIM with Lifeguard as one machine without I/O: events and the time go in, effects come out.

The runtime's part::

    membership = Membership(LAN, node, generation, endpoints, random.Random(), now)
    effects = membership.handle(Learned(peer, generation, endpoints), now)   # after Welcome; do them in order
    ...                                                                      # sleep until membership.next_deadline()
    effects = membership.handle(Tick(), now)

Sources: SWIM (Das, Gupta, Motivala 2002), Lifeguard (arXiv 1707.00788), memberlist (states, buddy system, push-pull).
What differs from them is listed in docs/decisions/membership-swim.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from random import Random
from types import MappingProxyType

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.core.messages import Message
from meshmoe.membership.awareness import Awareness
from meshmoe.membership.config import MembershipConfig
from meshmoe.membership.effects import LeaveFinished, MembershipEffect, NameConflict
from meshmoe.membership.events import Doubted, Learned, Leave, LocalHealth, MembershipEvent, Received, Tick
from meshmoe.membership.local import Local, Timer, TimerKind
from meshmoe.membership.member import Member, MemberState
from meshmoe.membership.messages import (
    MemberNews,
    MemberSync,
    MemberUpdate,
    Probe,
    ProbeAck,
    ProbeNack,
    ProbeRequest,
)
from meshmoe.membership.prober import Prober
from meshmoe.membership.rtt import RttEstimate
from meshmoe.membership.table import MemberTable

_SYNCS_AFTER_PAUSE = 2


class Membership:
    """Who is here. See the module's text for how to drive it."""

    def __init__(
        self,
        config: MembershipConfig,
        node: NodeId,
        generation: int,
        endpoints: Endpoints,
        rng: Random,
        now: float,
    ) -> None:
        """Start alone.

        Args:
            config: A preset of `meshmoe.membership.config`; the same on all nodes.
            node: This node's name.
            generation: Of this life; higher than of every earlier one.
            endpoints: Where this node listens, as others should reach it.
            rng: All of the machine's chance.
            now: Monotonic seconds.
        """
        self._local = Local(config, node, generation, endpoints, rng, Awareness(config, now))
        self._table = MemberTable(self._local)
        self._prober = Prober(self._local, self._table)
        self._farewells_left = config.leave_repeats
        self._earlier_life_warned = -1
        self._sync_gap_s = config.sync_interval_s
        # Random first times, or nodes started together would act together for ever.
        self._set(TimerKind.ROUND, now + rng.uniform(0, config.probe_interval_s))
        self._set(TimerKind.SYNC, now + rng.uniform(0, config.sync_interval_s))
        self._set(TimerKind.PROBE_DEAD, now + rng.uniform(0, config.dead_probe_interval_s))
        self._set(TimerKind.VISIT, now + rng.uniform(0, config.left_probe_interval_s))

    # -- what others may ask ------------------------------------------------------------

    @property
    def members(self) -> Mapping[NodeId, Member]:
        """Everybody else that is remembered, in any state. Live: copy it to keep it."""
        return MappingProxyType(self._table.members)

    @property
    def size(self) -> int:
        """Members alive or suspect, this node included."""
        return self._table.present_count

    @property
    def incarnation(self) -> int:
        """How often this node had to refute an accusation."""
        return self._local.incarnation

    def rtt(self, node: NodeId) -> RttEstimate | None:
        """Round trip to a member as its acks show it; None before the first."""
        meter = self._table.meters.get(node)
        return meter.estimate if meter is not None else None

    def health(self, now: float) -> int:
        """This node's own health: 0 is well; each point slows its probes by one interval."""
        return self._local.awareness.score(now)

    def next_deadline(self) -> float:
        """When to call `handle` with a `Tick` at the latest; infinity once this node has fallen silent."""
        return self._local.timers.next_s() if not self._local.silent else math.inf

    def handle(self, event: MembershipEvent, now: float) -> list[MembershipEffect]:
        """Take in one event.

        Args:
            event: See `meshmoe.membership.events`.
            now: Monotonic seconds, never less than at the call before.

        Returns:
            What to do, in order.
        """
        local = self._local
        if local.silent:
            return []
        local.out = []
        self._notice_lateness(now)
        match event:
            case Received(sender, generation, message):
                self._received(sender, generation, message, now)
            case Learned(node, generation, endpoints):
                self._learned(MemberUpdate(node, generation, 0, MemberState.ALIVE, endpoints), now)
            case Doubted(node):
                member = self._table.members.get(node)
                if member is not None and member.state.present:
                    self._prober.start(member, now)
            case LocalHealth(loop_late_s):
                local.awareness.late(loop_late_s, now)
            case Leave():
                self._leave(now)
            case Tick():
                pass
        # Whatever the event, what is due is done: an ack that came in this very event has been counted before.
        while not local.silent and (timer := local.timers.pop_due(now)) is not None:
            self._fire(timer, now)
        if self._table.upheaval and not local.silent:
            self._table.upheaval = False
            self._sync_gap_s = local.config.probe_window_s
            self._set(TimerKind.SYNC, now + self._sync_gap_s * local.rng.uniform(0.5, 1.0))
        has_news = len(local.queue) > 0 and self._table.present_count > 1
        if has_news and not local.silent and Timer(TimerKind.GOSSIP) not in local.timers:
            self._set(TimerKind.GOSSIP, now + local.config.gossip_interval_s)
        return local.out

    # -- messages ------------------------------------------------------------

    def _received(self, sender: NodeId, generation: int, message: Message, now: float) -> None:
        if sender == self._local.node:
            self._own_name(generation, message)
            return
        known = self._table.members.get(sender)
        if known is not None and generation < known.generation:
            self._table.note_earlier_life(sender, generation, now)
            return
        match message:
            case Probe(origin=origin, updates=updates):
                if origin.node != sender or origin.generation != generation:
                    return
                self._hear_all([origin, *updates], now)
                self._answer(sender, message)
            case ProbeAck(updates=updates):
                self._hear_all(updates, now)
                self._prober.acked(sender, generation, message, now)
            case ProbeRequest(updates=updates):
                self._hear_all(updates, now)
                self._prober.asked(sender, message, now)
            case ProbeNack(updates=updates):
                self._hear_all(updates, now)
                self._prober.nacked(sender, message)
            case MemberNews(updates=updates):
                self._hear_all(updates, now)
            case MemberSync(members=members, wants_reply=wants_reply):
                self._synced(sender, members, now, wants_reply=wants_reply)
            case _:
                raise AssertionError(f"not a membership message: {type(message).__name__}")

    def _hear_all(self, updates: Iterable[MemberUpdate], now: float, *, spread: bool = True) -> None:
        for update in updates:
            self._table.hear(update, now, spread=spread)
            if self._local.silent:
                return

    def _answer(self, sender: NodeId, probe: Probe) -> None:
        local = self._local
        if probe.generation != local.generation:
            # Meant for another life of this node: say which one lives.
            self._prober.send(sender, MemberNews([local.update()]))
            return
        known = self._table.members.get(sender)
        accused = known is not None and known.state is not MemberState.ALIVE
        news = self._prober.news(self._table.update_of(sender) if accused else None)
        self._prober.send(sender, ProbeAck(probe.id, local.incarnation, probe.attempt, news))

    def _synced(self, sender: NodeId, members: list[MemberUpdate], now: float, *, wants_reply: bool) -> None:
        # A newcomer must not repeat the mesh's own list to the mesh: it learns it, and spreads only itself.
        newcomer = len(members) > 2 * len(self._table.members)
        self._hear_all(members, now, spread=not newcomer)
        if wants_reply and not self._local.silent and self._table.can_send_to(sender):
            self._table.sync(sender, wants_reply=False)

    def _learned(self, update: MemberUpdate, now: float) -> None:
        self._table.hear(update, now)
        node = NodeId(update.node)
        member = self._table.members.get(node)
        if member is None:
            return
        if member.generation != update.generation:
            if not member.state.present and update.endpoints is not None:
                self._table.tell_of_later_life(node, update.endpoints)
            return
        if not self._table.can_send_to(node):
            return
        self._local.queue.put(self._local.update())
        self._table.upheaval = True
        self._table.sync(node, wants_reply=True)
        if not member.state.present:
            self._prober.knock(member)

    def _own_name(self, generation: int, message: Message) -> None:
        """Somebody else signs with this node's name."""
        local = self._local
        if generation == local.generation:
            return
        origin = message.origin if isinstance(message, Probe) else local.update()
        endpoints = origin.endpoints or local.endpoints
        if generation > local.generation:
            other = Member(local.node, generation, 0, MemberState.ALIVE, endpoints, 0.0)
            local.out.append(NameConflict(local.node, local.generation, other, yields=True))
            local.fall_silent()
        elif generation > self._earlier_life_warned:
            self._earlier_life_warned = generation
            me = Member(local.node, local.generation, local.incarnation, MemberState.ALIVE, local.endpoints, 0.0)
            local.out.append(NameConflict(local.node, generation, me))

    # -- time ------------------------------------------------------------

    def _notice_lateness(self, now: float) -> None:
        """An overdue timer shows that this node was not listening, for a moment or for long."""
        local = self._local
        late_s = now - local.timers.next_s()
        if late_s < local.config.late_unit_s:
            return
        local.awareness.late(late_s, now)
        if late_s < local.config.pause_s:
            return
        self._prober.abandon()
        self._table.restart_suspicions(now)
        # Others may have buried this node meanwhile, or died: ask, rather than judge by clocks that ran alone.
        present = self._table.present()
        for peer in local.rng.sample(present, min(_SYNCS_AFTER_PAUSE, len(present))):
            self._table.sync(peer, wants_reply=True)

    def _fire(self, timer: Timer, now: float) -> None:
        config, node_or_id = self._local.config, timer.subject
        match timer.kind:
            case TimerKind.ROUND:
                self._set(TimerKind.ROUND, now + self._prober.interval_s(now))
                self._probe_next(now)
            case TimerKind.RETRY:
                self._prober.retry(int(node_or_id), now)
            case TimerKind.END:
                self._prober.end(int(node_or_id), now)
            case TimerKind.RELAY_RETRY:
                self._prober.retry_relay(int(node_or_id), now)
            case TimerKind.NACK:
                self._prober.nack(int(node_or_id))
            case TimerKind.RELAY_END:
                self._prober.end_relay(int(node_or_id))
            case TimerKind.VERIFY:
                node = NodeId(str(node_or_id))
                self._local.timers.set(timer, now + self._prober.window_s(now))
                self._prober.start(self._table.members[node], now)
            case TimerKind.JUDGE:
                self._table.judge(NodeId(str(node_or_id)), now)
            case TimerKind.FORGET:
                self._table.forget(NodeId(str(node_or_id)))
            case TimerKind.GOSSIP:
                self._gossip()
            case TimerKind.SYNC:
                self._sync_gap_s = min(2 * self._sync_gap_s, config.sync_interval_at_s(self._table.present_count))
                self._set(TimerKind.SYNC, now + self._sync_gap_s)
                self._sync_with_somebody()
            case TimerKind.PROBE_DEAD:
                self._set(TimerKind.PROBE_DEAD, now + config.dead_probe_interval_s)
                self._probe_dead()
            case TimerKind.VISIT:
                self._set(TimerKind.VISIT, now + config.left_probe_interval_s)
                self._visit()
            case TimerKind.FAREWELL:
                self._farewell(now)

    def _probe_next(self, now: float) -> None:
        members = self._table.members
        target = self._table.rotation.next(
            lambda node: members[node].state.present and not self._prober.busy_with(node)
        )
        if target is not None:
            self._prober.start(members[target], now)

    def _probe_dead(self) -> None:
        dead = [member for member in self._table.members.values() if member.state is MemberState.DEAD]
        if dead:
            self._prober.knock(self._local.rng.choice(dead))

    def _visit(self) -> None:
        """Whoever left may be back in another mesh, which nobody here has heard of: look where it was."""
        self._table.end_visit()
        left = [member for member in self._table.members.values() if member.state is MemberState.LEFT]
        if left:
            member = self._local.rng.choice(left)
            self._table.visit(member.node)
            self._prober.knock(member)

    def _gossip(self) -> None:
        present = self._table.present()
        for peer in self._local.rng.sample(present, min(self._local.config.gossip_fanout, len(present))):
            news = self._prober.news()
            if not news:
                return
            self._prober.send(peer, MemberNews(news))

    def _sync_with_somebody(self) -> None:
        present = self._table.present(alive_only=True)
        if present:
            self._table.sync(self._local.rng.choice(present), wants_reply=True)

    # -- leaving ------------------------------------------------------------

    def _leave(self, now: float) -> None:
        if self._local.leaving:
            return
        self._local.leaving = True
        self._prober.abandon()
        self._local.timers.clear()
        self._local.queue.clear()
        self._farewell(now)

    def _farewell(self, now: float) -> None:
        if self._farewells_left == 0:
            self._local.out.append(LeaveFinished())
            self._local.fall_silent()
            return
        self._farewells_left -= 1
        for peer in self._table.present():
            self._prober.send(peer, MemberNews([self._local.update()]))
        self._set(TimerKind.FAREWELL, now + self._local.config.gossip_interval_s)

    def _set(self, kind: TimerKind, at_s: float) -> None:
        self._local.timers.set(Timer(kind), at_s)
