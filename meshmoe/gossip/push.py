"""Pushing what is fresh.

Each node's own changes are pushed in two consecutive intervals, against loss; what comes from others is passed on
once, in a mesh too large to tell everybody directly. A delta is a statement that holds by itself, so it is passed on
even when this node misses something before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from meshmoe.core.ids import NodeId
from meshmoe.gossip.desk import PART_BYTES_MIN, Desk
from meshmoe.gossip.messages import MESSAGE_OVERHEAD_BYTES, NODES_MAX, GossipPush, NodeDelta, delta_bytes
from meshmoe.gossip.replica import Replica

_LOOSE_MAX = 1024
"""Deltas with a gap before them that wait to be passed on."""


class _Source:
    """What is left to push of one owner: its entries above ``after``, or one delta as it came."""

    __slots__ = ("after", "delta", "done", "replica")

    def __init__(self, replica: Replica, after: int, delta: NodeDelta | None = None) -> None:
        self.replica = replica
        self.after = after
        self.done = False
        self.delta = delta

    def take(self, size_max: int) -> tuple[NodeDelta, int]:
        """The next delta, of at most ``size_max`` bytes if its first entry allows, and its size."""
        if self.delta is not None:
            self.done = True
            return self.delta, delta_bytes(self.delta)
        delta, size, cut = self.replica.delta(self.after, size_max)
        self.after = delta.upto
        self.done = not cut
        return delta, size


class Pusher:
    """How far each owner's entries have been pushed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._own_once = 0
        """Own entries up to this version have been pushed."""
        self._own_twice = 0
        """And up to this one, twice."""
        self._passed: dict[NodeId, tuple[int, int]] = {}
        """Generation and version up to which another owner's entries need no passing on."""
        self._loose: deque[NodeDelta] = deque(maxlen=_LOOSE_MAX)

    def fresh(self) -> None:
        """The push of an interval: own changes first, since nobody else has them, then what came from others."""
        desk = self._desk
        peers = desk.store.peers
        if not peers:
            return
        direct = self._direct(peers)
        chosen = peers if direct else desk.rng.sample(peers, min(desk.config.fanout, len(peers)))
        own = _Source(desk.store.own, self._own_twice)
        once_before = self._own_once
        sources = [own] if own.replica.upto > own.after else []
        if not direct:
            sources += self._others()
        self._send_all(sources, chosen, relay=not direct, urgent=False)
        self._own_once = max(once_before, own.after)
        self._own_twice = min(once_before, own.after)

    def urgent(self) -> None:
        """Own changes at once, whatever the budget says; the interval's push repeats them."""
        desk = self._desk
        peers = desk.store.peers
        if not peers or desk.store.own.upto <= self._own_once:
            return
        direct = self._direct(peers)
        count = desk.config.urgent_peers(len(peers) + 1)
        chosen = peers if direct else desk.rng.sample(peers, min(count, len(peers)))
        own = _Source(desk.store.own, self._own_once)
        self._send_all([own], chosen, relay=not direct, urgent=True)
        self._own_once = own.after

    def pass_on_at_once(self, fresh: Iterable[Replica]) -> None:
        """An urgent change of somebody else came by: pass it on without waiting."""
        desk = self._desk
        peers = desk.store.peers
        chosen = desk.rng.sample(peers, min(desk.config.fanout, len(peers)))
        speakable = (desk.store.speakable(replica.node) for replica in fresh)
        self._send_all(self._sources(speakable), chosen, relay=True, urgent=True)

    def needs_no_passing_on(self, replica: Replica, had_upto: int) -> None:
        """What brought a replica up from ``had_upto`` is known to the others: do not pass it on."""
        if self._passed_upto(replica) >= had_upto:
            self._passed[replica.node] = (replica.generation, replica.upto)

    def pass_on_loose(self, delta: NodeDelta) -> None:
        """Pass on a delta that left a gap."""
        self._loose.append(delta)

    def forget(self, node: NodeId) -> None:
        """An owner is gone."""
        self._passed.pop(node, None)

    def _others(self) -> list[_Source]:
        """What is to be passed on, from a random owner on, so that under a tight budget none always comes last."""
        store = self._desk.store
        sources = self._sources(store.all_speakable())
        for delta in self._loose:
            replica = store.speakable(NodeId(delta.node))
            if replica is not None and replica.generation == delta.generation:
                sources.append(_Source(replica, delta.after, delta))
        self._loose.clear()
        turn = self._desk.rng.randrange(len(sources)) if sources else 0
        return sources[turn:] + sources[:turn]

    def _sources(self, replicas: Iterable[Replica | None]) -> list[_Source]:
        return [
            _Source(replica, self._passed_upto(replica))
            for replica in replicas
            if replica is not None and replica is not self._desk.store.own and replica.upto > self._passed_upto(replica)
        ]

    def _send_all(self, sources: list[_Source], peers: list[NodeId], *, relay: bool, urgent: bool) -> None:
        """Send message after message; unless urgent, as far as the budget goes."""
        desk = self._desk
        reserve = desk.config.sync_reserve * desk.config.budget_bytes_per_s(len(desk.store.peers) + 1)
        waiting = deque(sources)
        while waiting:
            size_max = desk.config.message_bytes
            if not urgent:
                size_max = min(size_max, int((desk.budget.available(desk.now) - reserve) / len(peers)))
                if size_max < PART_BYTES_MIN:
                    return
            self._send(peers, self._fill(waiting, size_max), relay=relay, urgent=urgent)

    def _fill(self, waiting: deque[_Source], size_max: int) -> list[NodeDelta]:
        """Deltas for one message; what was wholly taken leaves ``waiting``."""
        deltas: list[NodeDelta] = []
        room = size_max - MESSAGE_OVERHEAD_BYTES
        while waiting and len(deltas) < NODES_MAX and (not deltas or room >= PART_BYTES_MIN // 4):
            source = waiting[0]
            delta, size = source.take(room)
            deltas.append(delta)
            room -= size
            if source.delta is None and source.replica is not self._desk.store.own:
                self._passed[source.replica.node] = (source.replica.generation, source.after)
            if not source.done:
                break
            waiting.popleft()
        return deltas

    def _send(self, peers: Iterable[NodeId], deltas: list[NodeDelta], *, relay: bool, urgent: bool) -> None:
        whole = GossipPush(deltas, relay, urgent)
        owners = {delta.node for delta in deltas}
        for peer in peers:
            if peer not in owners:
                self._desk.send(peer, whole)
            elif len(owners) > 1:  # nobody needs its own entries
                rest = [delta for delta in deltas if delta.node != peer]
                self._desk.send(peer, GossipPush(rest, relay, urgent))

    def _direct(self, peers: list[NodeId]) -> bool:
        """Whether everybody is told directly, and nobody passes on."""
        return len(peers) <= self._desk.config.direct_max

    def _passed_upto(self, replica: Replica) -> int:
        generation, upto = self._passed.get(replica.node, (-1, 0))
        return upto if generation == replica.generation else 0
