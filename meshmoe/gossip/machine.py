"""Gossip as one machine without I/O: events and the time go in, messages come out, and the view follows.

Three ways for news to travel (epidemics after Demers et al. 1987, digests after scuttlebutt, van Renesse et al. 2008):

1. *Push*: fresh entries each interval. In a small mesh straight to everybody, in a larger one to a few random peers
that
   pass on, once, what is new to them. Urgent changes do not wait for the interval.
2. *Ask*: a push that leaves a gap (an earlier one was lost) is answered with a request for what is missing.
3. *Sync*: each node regularly compares digests with one random peer, and both repair what they lack.

Everything but urgent pushes keeps within a byte budget (`meshmoe.gossip.config`). The runtime's part::

    gossip = Gossip(DEFAULT, node, generation, random.Random(), now)
    gossip.handle(Publish((NodeInfo(...), Holdings.of(3, {1, 5}))), now)
    gossip.handle(effect_of_membership, now)      # MemberAlive and the like
    gossip.handle(Tick(), now)                    # at gossip.next_deadline()
    gossip.view.holders(ExpertId(3, 5))
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from meshmoe.core.ids import NodeId
from meshmoe.core.messages import Message
from meshmoe.gossip.budget import Budget
from meshmoe.gossip.config import GossipConfig
from meshmoe.gossip.events import GossipEffect, GossipEvent, LaterLife, Publish, Withdraw
from meshmoe.gossip.messages import (
    MESSAGE_OVERHEAD_BYTES,
    NODES_MAX,
    GossipDelta,
    GossipDigest,
    GossipPush,
    NodeDelta,
    NodeDigest,
    digest_bytes,
    message_bytes,
)
from meshmoe.gossip.replica import Replica
from meshmoe.gossip.store import Store
from meshmoe.gossip.values import Agreement, Claims, Holdings, NodeInfo, Value, key_of, pack
from meshmoe.gossip.view import View
from meshmoe.membership import (
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLeft,
    MemberSuspect,
    Received,
    Send,
    Tick,
)

_PART_BYTES_MIN = 1024
"""Below this much budget a sync is put off rather than cut to crumbs."""


class Gossip:
    """Who knows what. See the module's text for how to drive it."""

    def __init__(self, config: GossipConfig, node: NodeId, generation: int, rng: Random, now: float) -> None:
        """Start alone, with nothing told.

        Args:
            config: See `meshmoe.gossip.config`; the same on all nodes.
            node: This node's name.
            generation: Of this life; the same as membership's.
            rng: All of the machine's chance.
            now: Monotonic seconds.
        """
        self._config = config
        self._rng = rng
        self._store = Store(config, node, generation)
        self._own = self._store.own
        self._budget = Budget(config.budget_bytes_per_s(1), config.burst_s, now)
        self._push_at_s = now + rng.uniform(0, config.interval_s)
        self._sync_at_s = now + rng.uniform(0, config.sync_interval_s)
        self._agree_at_s = now
        self._pushed: dict[NodeId, tuple[int, int]] = {}
        """Generation and version up to which each owner's entries need no (further) push."""
        self._urged_upto = 0
        self._asked_s: dict[NodeId, float] = {}
        self._tombstones: list[tuple[float, int]] = []
        self._out: list[GossipEffect] = []
        self._now = now

    # -- what others may ask -----------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """What is known of all nodes; the same object always."""
        return self._store.view

    @property
    def sent_bytes(self) -> int:
        """All bytes sent so far, by the machine's own (upper) estimate."""
        return self._budget.sent_bytes

    @property
    def invalid_values(self) -> int:
        """Entries received whose bytes were not what their key promises."""
        return self._store.invalid_values

    def next_deadline(self) -> float:
        """When to call `handle` with a `Tick`."""
        return min(self._push_at_s, self._sync_at_s)

    def handle(self, event: GossipEvent, now: float) -> list[GossipEffect]:
        """Take in one event.

        Args:
            event: See `meshmoe.gossip.events`.
            now: Monotonic seconds, never less than at the call before.

        Returns:
            What to do, in order. Sends go to present members only, so these are connected.
        """
        self._out = []
        self._now = now
        match event:
            case Received(sender, _, message):
                self._received(sender, message)
            case MemberAlive(member) | MemberSuspect(member):
                suspect = isinstance(event, MemberSuspect)
                if self._store.appear(member.node, member.generation, suspect=suspect):
                    self._greet()
            case MemberDead(member):
                self._store.die(member.node, member.generation, now)
                self._size_changed()
            case MemberLeft(member) | MemberForgotten(member):
                self._store.depart(member.node, member.generation, now)
                self._pushed.pop(member.node, None)
                self._asked_s.pop(member.node, None)
                self._size_changed()
            case Publish(values, urgent):
                self._publish(values, urgent)
            case Withdraw(keys):
                self._withdraw(keys)
            case Tick():
                pass
        if now >= self._push_at_s:
            self._push_at_s = now + self._config.interval_s
            self._store.expire(now)
            self._collect_tombstones()
            self._agree()
            self._push_fresh()
        if now >= self._sync_at_s:
            self._sync_at_s = now + self._config.sync_interval_s * self._rng.uniform(0.75, 1.25)
            self._sync()
        return self._out

    # -- own entries -------------------------------------------------------------------------------------------------

    def _publish(self, values: Iterable[Value], urgent: bool | None) -> None:
        needs_haste = False
        for value in values:
            key, data = key_of(value), pack(value)
            known = self._own.entries.get(key)
            if known is not None and known.value == data:
                continue
            self._own.write(key, data)
            self._store.show_entry(self._own, key)
            leaving = isinstance(value, NodeInfo) and value.state == "leaving"
            needs_haste = needs_haste or leaving or isinstance(value, Holdings | Claims)
        if needs_haste if urgent is None else urgent:
            self._push_urgent()

    def _withdraw(self, keys: Iterable[str]) -> None:
        for key in keys:
            known = self._own.entries.get(key)
            if known is None or known.value is None:
                continue
            self._own.write(key, None)
            self._tombstones.append((self._now, self._own.upto))
            self._store.show_entry(self._own, key)

    def _collect_tombstones(self) -> None:
        collected = [item for item in self._tombstones if self._now - item[0] >= self._config.tombstone_s]
        if collected:
            self._own.raise_floor(collected[-1][1])
            del self._tombstones[: len(collected)]

    def _agree(self) -> None:
        """Tell which holder map this node sees, when that changed."""
        if self._now < self._agree_at_s:
            return
        digest = self.view.holder_digest()
        if self.view.nodes[self._own.node].agreement != digest:
            self._agree_at_s = self._now + self._config.agreement_s
            self._publish([Agreement(digest)], urgent=False)

    def _outlive(self, generation: int, version: int) -> bool:
        """Others have this node's entries up to ``version``: write above what an earlier life left there.

        Returns:
            Whether that was needed.
        """
        if generation > self._own.generation:
            self._out.append(LaterLife(generation))
        if generation != self._own.generation or version <= self._own.upto:
            return False
        entries = list(self._own.entries.values())
        self._own.upto = version
        self._tombstones = []
        for entry in entries:
            self._own.write(entry.key, entry.value)
            if entry.value is None:
                self._tombstones.append((self._now, self._own.upto))
        return True

    # -- pushes ------------------------------------------------------------------------------------------------------

    def _direct(self) -> bool:
        """Whether everybody is told directly, and nobody passes on."""
        return len(self._store.peers) <= self._config.direct_max

    def _push_fresh(self) -> None:
        peers = self._store.peers
        if not peers:
            return
        direct = self._direct()
        chosen = peers if direct else self._rng.sample(peers, self._config.fanout)
        fresh = [self._own] if direct else list(self._store.speakable())
        fresh = [replica for replica in fresh if replica.upto > self._pushed_upto(replica)]
        reserve = self._config.sync_reserve * self._config.budget_bytes_per_s(len(peers) + 1)
        # What is passed on starts at a random owner, so that under a tight budget no owner always comes last; this
        # node's own entries come first, since nobody else has them yet.
        if len(fresh) > 1:
            first, others = (fresh[:1], fresh[1:]) if fresh[0] is self._own else ([], fresh)
            turn = self._rng.randrange(len(others)) if others else 0
            fresh = first + others[turn:] + others[:turn]
        while fresh:
            allowed = (self._budget.available(self._now) - reserve) / len(chosen)
            if allowed < _PART_BYTES_MIN:
                return
            size_max = min(self._config.message_bytes, int(allowed))
            deltas, fresh = self._take(fresh, size_max)
            self._send_push(chosen, deltas, relay=not direct)

    def _push_urgent(self) -> None:
        """Tell others of this node's own changes at once, whatever the budget says.

        The next interval's push repeats it: an urgent change is sent twice, against loss.
        """
        peers = self._store.peers
        if not peers:
            return
        direct = self._direct()
        count = self._config.urgent_peers(len(peers) + 1)
        chosen = peers if direct else self._rng.sample(peers, min(count, len(peers)))
        self._urged_upto = max(self._urged_upto, self._pushed_upto(self._own))
        while self._urged_upto < self._own.upto:
            delta, _, _ = self._own.delta(self._urged_upto, self._config.message_bytes)
            self._urged_upto = delta.upto
            self._send_push(chosen, [delta], relay=not direct, urgent=True)

    def _pushed_upto(self, replica: Replica) -> int:
        generation, upto = self._pushed.get(replica.node, (-1, 0))
        return upto if generation == replica.generation else 0

    def _take(self, fresh: list[Replica], size_max: int) -> tuple[list[NodeDelta], list[Replica]]:
        """Deltas for one push, and the replicas of which something is left."""
        deltas: list[NodeDelta] = []
        used = MESSAGE_OVERHEAD_BYTES
        for place, replica in enumerate(fresh):
            if deltas and (used >= size_max - _PART_BYTES_MIN // 4 or len(deltas) == NODES_MAX):
                return deltas, fresh[place:]
            delta, size, cut = replica.delta(self._pushed_upto(replica), size_max - used)
            deltas.append(delta)
            used += size
            self._pushed[replica.node] = (replica.generation, delta.upto)
            if cut:
                return deltas, fresh[place:]
        return deltas, []

    def _send_push(
        self, peers: Iterable[NodeId], deltas: list[NodeDelta], *, relay: bool, urgent: bool = False
    ) -> None:
        whole = GossipPush(deltas, relay, urgent)
        owners = {delta.node for delta in deltas}
        for peer in peers:
            if peer not in owners:
                self._send(peer, whole)
            elif len(owners) > 1:  # nobody needs its own entries
                self._send(peer, GossipPush([delta for delta in deltas if delta.node != peer], relay, urgent))

    # -- sync --------------------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        """Somebody came: if this node was alone until now, it has everything to learn."""
        self._size_changed()
        if len(self._store.peers) == 1:
            self._sync_at_s = self._now

    def _size_changed(self) -> None:
        self._budget.set_rate(self._config.budget_bytes_per_s(len(self._store.peers) + 1), self._now)

    def _sync(self) -> None:
        peers = self._store.peers
        if not peers or self._budget.available(self._now) < _PART_BYTES_MIN:
            return
        digests, first, until = self._store.digests(self._rng.random())
        self._send(self._rng.choice(peers), GossipDigest(digests, first, until))

    def _answer_digest(self, sender: NodeId, message: GossipDigest) -> None:
        if not self._store.is_peer(sender):
            return
        theirs = {NodeId(digest.node): digest for digest in message.digests}
        wanted = self._behind(message.digests)
        budget = self._sync_budget(wanted)
        if budget is None:
            return
        deltas: list[NodeDelta] = []
        more = False
        replicas = list(self._store.speakable())
        self._rng.shuffle(replicas)  # when not all fits, different answerers send different parts
        for replica in replicas:
            if replica.node == sender or not message.covers(replica.node):
                continue
            after = _missing_after(replica, theirs.get(replica.node))
            if after is None:
                continue
            if budget < _PART_BYTES_MIN // 4 or len(deltas) == NODES_MAX:
                more = True
                break
            delta, size, cut = replica.delta(after, budget)
            deltas.append(delta)
            budget -= size
            more = more or cut
        if deltas or wanted:
            self._send(sender, GossipDelta(deltas, wanted, more))

    def _behind(self, digests: Iterable[NodeDigest]) -> list[NodeDigest]:
        """Digests of this node's own state where it lacks something that others have."""
        behind: list[NodeDigest] = []
        for digest in digests:
            node = NodeId(digest.node)
            if node == self._own.node:
                if self._outlive(digest.generation, digest.upto):
                    self._push_urgent()
                continue
            if self._store.refuses(node, digest.generation):
                continue
            ours = self._store.replicas.get(node)
            if ours is None or ours.generation < digest.generation:
                behind.append(NodeDigest(node, digest.generation, 0))
            elif ours.generation == digest.generation and ours.upto < digest.upto:
                behind.append(ours.digest())
        return behind

    def _serve(self, sender: NodeId, wants: Iterable[NodeDigest]) -> None:
        """Send what a peer asked for."""
        budget = self._sync_budget(())
        if budget is None or not self._store.is_peer(sender):
            return
        speakable = {replica.node: replica for replica in self._store.speakable()}
        deltas: list[NodeDelta] = []
        for digest in wants:
            replica = speakable.get(NodeId(digest.node))
            after = _missing_after(replica, digest) if replica is not None else None
            if replica is None or after is None:
                continue
            if budget < _PART_BYTES_MIN // 4:
                break
            delta, size, _ = replica.delta(after, budget)
            deltas.append(delta)
            budget -= size
        if deltas:
            self._send_push([sender], deltas, relay=False)

    def _sync_budget(self, wanted: Iterable[NodeDigest]) -> int | None:
        """Bytes of deltas that an answer may carry; None when the budget is spent."""
        available = self._budget.available(self._now)
        if available < _PART_BYTES_MIN:
            return None
        return min(self._config.message_bytes, int(available)) - sum(digest_bytes(digest) for digest in wanted)

    # -- messages ----------------------------------------------------------------------------------------------------

    def _received(self, sender: NodeId, message: Message) -> None:
        match message:
            case GossipPush(deltas, relay, urgent):
                fresh, gaps = self._absorb(deltas, relay=relay)
                if urgent and relay and fresh:
                    self._pass_on_at_once(fresh)
                self._ask(sender, gaps)
            case GossipDigest():
                self._answer_digest(sender, message)
            case GossipDelta(deltas, wants, more):
                self._absorb(deltas, relay=False)
                self._serve(sender, wants)
                if more:
                    self._sync_at_s = min(self._sync_at_s, self._now + self._config.interval_s)
            case _:
                raise AssertionError(f"not a gossip message: {type(message).__name__}")

    def _absorb(self, deltas: Iterable[NodeDelta], *, relay: bool) -> tuple[list[Replica], list[NodeId]]:
        """Merge deltas; returns the replicas that grew and the owners of whom something is missing."""
        fresh: list[Replica] = []
        gaps: list[NodeId] = []
        for delta in deltas:
            node = NodeId(delta.node)
            if node == self._own.node:
                if self._outlive(delta.generation, delta.upto):
                    self._push_urgent()
                continue
            before = self._store.replicas.get(node)
            had = self._pushed_upto(before) == before.upto if before is not None else True
            news, gap = self._store.absorb(delta, self._now)
            if gap:
                gaps.append(node)
            if news:
                replica = self._store.replicas[node]
                fresh.append(replica)
                if not relay and had:
                    # Everybody was told, or this is old news that was missed: not for passing on.
                    self._pushed[node] = (replica.generation, replica.upto)
        return fresh, gaps

    def _pass_on_at_once(self, fresh: list[Replica]) -> None:
        peers = self._store.peers
        chosen = self._rng.sample(peers, min(self._config.fanout, len(peers)))
        speakable = {replica.node for replica in self._store.speakable()}
        left = [replica for replica in fresh if replica.node in speakable]
        while left:
            deltas, left = self._take(left, self._config.message_bytes)
            self._send_push(chosen, deltas, relay=True, urgent=True)

    def _ask(self, sender: NodeId, gaps: Iterable[NodeId]) -> None:
        """Ask the sender of a push for what came before it, once an interval for each owner."""
        wants: list[NodeDigest] = []
        for node in gaps:
            if self._now - self._asked_s.get(node, -self._config.interval_s) >= self._config.interval_s:
                self._asked_s[node] = self._now
                wants.append(self._store.replicas[node].digest())
        if wants and self._store.is_peer(sender):
            self._send(sender, GossipDelta(wants=wants))

    def _send(self, peer: NodeId, message: GossipPush | GossipDigest | GossipDelta) -> None:
        self._budget.spend(message_bytes(message), self._now)
        self._out.append(Send(peer, message))


def _missing_after(replica: Replica, digest: NodeDigest | None) -> int | None:
    """From which version a holder of ``digest`` lacks something of ``replica``; None when it lacks nothing."""
    if digest is None or digest.generation < replica.generation:
        return 0
    if digest.generation > replica.generation or digest.upto >= replica.upto:
        return None
    return replica.start_for(digest.upto, digest.floor)
