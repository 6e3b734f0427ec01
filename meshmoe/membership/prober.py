"""Probes: this node's own, and those it makes for others.

One probe of a member, SWIM section 4.1 with Lifeguard's nacks::

    0          retry      timeout                         window * (1 + health)
    |- Probe --|- Probe --|- Probe, ProbeRequest to 3 --- ... -| silent: accuse
                             relay: Probe ... 80 % of the rest: ProbeNack

Any ack ends it, the target's own or a relay's. There is at most one probe of a member at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from meshmoe.core.ids import NodeId
from meshmoe.core.messages import Message
from meshmoe.membership.effects import Send
from meshmoe.membership.local import Local, Timer, TimerKind
from meshmoe.membership.member import Member, MemberState
from meshmoe.membership.messages import MemberUpdate, Probe, ProbeAck, ProbeNack, ProbeRequest
from meshmoe.membership.table import MemberTable

_ATTEMPTS_MAX = 255
_ID_LIMIT = 1 << 32
_OVER_MAX = 64
"""Probes without an answer that are remembered in case it comes late."""


@dataclass(slots=True)
class _OwnProbe:
    target: NodeId
    generation: int
    started_s: float
    ends_s: float
    sent_s: list[float] = field(default_factory=list)
    relays: frozenset[NodeId] = frozenset()
    nacks: set[NodeId] = field(default_factory=set)


@dataclass(slots=True)
class _Relay:
    asker: NodeId
    asker_id: int
    target: NodeId
    generation: int
    attempts: int = 0


class Prober:
    """Probes in flight. Ids are unique among own probes and relays together, so one ack finds its one cause."""

    def __init__(self, local: Local, table: MemberTable) -> None:
        self._local = local
        self._table = table
        self._probes: dict[int, _OwnProbe] = {}
        self._probe_of: dict[NodeId, int] = {}
        self._relays: dict[int, _Relay] = {}
        self._over: dict[int, NodeId] = {}
        self._last_id = local.rng.randrange(_ID_LIMIT)

    def interval_s(self, now: float) -> float:
        """Time between the beginnings of two probes: stretched by local health."""
        return self._local.config.probe_interval_s * (1 + self._local.awareness.score(now))

    def window_s(self, now: float) -> float:
        """Time for an answer: stretched by local health."""
        return self._local.config.probe_window_s * (1 + self._local.awareness.score(now))

    def busy_with(self, node: NodeId) -> bool:
        """Whether a probe of ``node`` is in flight."""
        return node in self._probe_of

    def start(self, member: Member, now: float) -> None:
        """Begin a probe of a member that has none."""
        if member.node in self._probe_of:
            return
        probe_id = self._next_id()
        probe = _OwnProbe(member.node, member.generation, now, now + self.window_s(now))
        self._probes[probe_id] = probe
        self._probe_of[member.node] = probe_id
        self._local.timers.set(Timer(TimerKind.END, probe_id), probe.ends_s)
        self._send_attempt(probe_id, probe, now)

    def knock(self, member: Member) -> None:
        """One probe that nobody waits for: if a dead member hears it, its answer is its refutation."""
        probe_id = self._next_id()
        self._remember(probe_id, member.node)
        self._send_probe(probe_id, member.node, member.generation, 0)

    def retry(self, probe_id: int, now: float) -> None:
        """Send an unanswered probe again, and ask for help once its timeout is over."""
        probe = self._probes[probe_id]
        if not probe.relays and now - probe.started_s >= self._local.config.probe_timeout_s:
            self._ask_relays(probe_id, probe, now)
        self._send_attempt(probe_id, probe, now)

    def end(self, probe_id: int, now: float) -> None:
        """Nobody answered."""
        probe = self._drop(probe_id)
        self._remember(probe_id, probe.target)
        self._local.awareness.failed(len(probe.relays), len(probe.nacks))
        self._table.accuse(probe.target, probe.generation, now)

    def acked(self, sender: NodeId, generation: int, ack: ProbeAck, now: float) -> None:
        """An ack came: for an own probe (from the target or a relay), or for one made for somebody else."""
        relay = self._relays.get(ack.id)
        if relay is not None:
            if sender == relay.target and generation == relay.generation:
                self._end_relay(ack.id)
                self.send(relay.asker, ProbeAck(relay.asker_id, ack.incarnation, updates=self.news()))
            return
        probe = self._probes.get(ack.id)
        if probe is None:
            self._acked_late(sender, generation, ack, now)
            return
        if not (sender in probe.relays or (sender == probe.target and generation == probe.generation)):
            return
        if sender == probe.target and ack.attempt < len(probe.sent_s):
            self._table.meters[sender].add(now - probe.sent_s[ack.attempt])
        self._drop(ack.id)
        self._local.awareness.answered()
        self._table.answered(probe.target, probe.generation, ack.incarnation, now)

    def _acked_late(self, sender: NodeId, generation: int, ack: ProbeAck, now: float) -> None:
        """Proof of life all the same; for a dead member it is the way back."""
        if self._over.get(ack.id) == sender:
            del self._over[ack.id]
            self._table.answered(sender, generation, ack.incarnation, now)

    def nacked(self, sender: NodeId, nack: ProbeNack) -> None:
        """A relay is there, but the target has not answered it either."""
        probe = self._probes.get(nack.id)
        if probe is not None and sender in probe.relays:
            probe.nacks.add(sender)

    def asked(self, sender: NodeId, request: ProbeRequest, now: float) -> None:
        """Somebody asks this node to probe for it."""
        member = self._table.members.get(NodeId(request.target))
        known = member is not None and member.generation == request.generation and member.state is not MemberState.LEFT
        if not known or len(self._relays) >= self._local.config.relays_max:
            self.send(sender, ProbeNack(request.id, updates=self.news()))
            return
        relay_id = self._next_id()
        self._relays[relay_id] = _Relay(sender, request.id, NodeId(request.target), request.generation)
        budget_s = request.budget_ms / 1000
        self._local.timers.set(Timer(TimerKind.NACK, relay_id), now + budget_s * self._local.config.nack_share)
        self._local.timers.set(Timer(TimerKind.RELAY_END, relay_id), now + budget_s)
        self.retry_relay(relay_id, now)

    def retry_relay(self, relay_id: int, now: float) -> None:
        """Send a probe made for somebody else, again if need be."""
        relay = self._relays[relay_id]
        self._send_probe(relay_id, relay.target, relay.generation, relay.attempts)
        relay.attempts += 1
        if relay.attempts < _ATTEMPTS_MAX:
            self._local.timers.set(Timer(TimerKind.RELAY_RETRY, relay_id), now + self._local.config.probe_retry_s)

    def nack(self, relay_id: int) -> None:
        """Tell the asker that the target is silent; an ack may still follow."""
        relay = self._relays[relay_id]
        self._local.timers.cancel(Timer(TimerKind.RELAY_RETRY, relay_id))
        self.send(relay.asker, ProbeNack(relay.asker_id, updates=self.news()))

    def end_relay(self, relay_id: int) -> None:
        """The asker waits no longer."""
        self._end_relay(relay_id)

    def abandon(self) -> None:
        """Forget all probes without a verdict: this node stood still and cannot tell who answered."""
        for probe_id in list(self._probes):
            self._drop(probe_id)
        for relay_id in list(self._relays):
            self._end_relay(relay_id)

    def send(self, peer: NodeId, message: Message) -> None:
        """Send to a connected peer; a stranger cannot be answered."""
        if self._table.can_send_to(peer):
            self._local.out.append(Send(peer, message))

    def _send_attempt(self, probe_id: int, probe: _OwnProbe, now: float) -> None:
        self._send_probe(probe_id, probe.target, probe.generation, len(probe.sent_s))
        probe.sent_s.append(now)
        again_s = now + self._local.config.probe_retry_s
        if again_s < probe.ends_s and len(probe.sent_s) < _ATTEMPTS_MAX:
            self._local.timers.set(Timer(TimerKind.RETRY, probe_id), again_s)

    def _send_probe(self, probe_id: int, target: NodeId, generation: int, attempt: int) -> None:
        member = self._table.members.get(target)
        if member is None or member.generation != generation:
            return
        # Lifeguard's buddy system: a suspect hears of it from whoever probes it, so it can refute at once.
        accusation = self._table.update_of(target) if member.state is not MemberState.ALIVE else None
        news = self.news(accusation)
        self.send(target, Probe(probe_id, generation, self._local.update(), attempt, news))

    def _ask_relays(self, probe_id: int, probe: _OwnProbe, now: float) -> None:
        candidates = self._table.present(but=probe.target, alive_only=True)
        chosen = self._local.rng.sample(candidates, min(self._local.config.indirect_probes, len(candidates)))
        probe.relays = frozenset(chosen)
        budget_ms = max(1, int((probe.ends_s - now) * 1000))
        for relay in chosen:
            self.send(relay, ProbeRequest(probe_id, probe.target, probe.generation, budget_ms, self.news()))

    def news(self, first: MemberUpdate | None = None) -> list[MemberUpdate]:
        """What rides on the next message; ``first`` goes along in any case."""
        limit = self._local.config.retransmits(self._table.present_count)
        return self._local.queue.take(self._local.config.piggyback_bytes, limit, first=first)

    def _remember(self, probe_id: int, target: NodeId) -> None:
        self._over[probe_id] = target
        if len(self._over) > _OVER_MAX:
            del self._over[next(iter(self._over))]

    def _drop(self, probe_id: int) -> _OwnProbe:
        probe = self._probes.pop(probe_id)
        del self._probe_of[probe.target]
        self._local.timers.cancel(Timer(TimerKind.RETRY, probe_id))
        self._local.timers.cancel(Timer(TimerKind.END, probe_id))
        return probe

    def _end_relay(self, relay_id: int) -> None:
        del self._relays[relay_id]
        for kind in (TimerKind.RELAY_RETRY, TimerKind.NACK, TimerKind.RELAY_END):
            self._local.timers.cancel(Timer(kind, relay_id))

    def _next_id(self) -> int:
        self._last_id = (self._last_id + 1) % _ID_LIMIT
        return self._last_id
