"""Gossip as one machine without I/O: events and the time go in, messages come out, and the view follows.

Three ways for news to travel (epidemics after Demers et al. 1987, digests after scuttlebutt, van Renesse et al. 2008):

1. *Push*: fresh entries each interval. In a small mesh straight to everybody, in a larger one to a few random peers
   that pass on, once, what is new to them. Urgent changes do not wait for the interval.
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
from meshmoe.gossip.desk import Desk
from meshmoe.gossip.events import GossipEffect, GossipEvent, LaterLife, Publish, Withdraw
from meshmoe.gossip.messages import GossipDelta, GossipDigest, GossipPush, NodeDelta
from meshmoe.gossip.push import Pusher
from meshmoe.gossip.replica import Replica
from meshmoe.gossip.store import Store
from meshmoe.gossip.sync import Syncer
from meshmoe.gossip.values import Agreement, Claims, Holdings, NodeInfo, Value, key_of, pack
from meshmoe.gossip.view import View
from meshmoe.membership import MemberAlive, MemberDead, MemberForgotten, MemberLeft, MemberSuspect, Received, Tick


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
        self._store = Store(config, node, generation)
        self._own = self._store.own
        budget = Budget(config.budget_bytes_per_s(1), config.burst_s, now)
        self._desk = Desk(config, rng, self._store, budget, now)
        self._pusher = Pusher(self._desk)
        self._syncer = Syncer(self._desk)
        self._push_at_s = now + rng.uniform(0, config.interval_s)
        self._sync_at_s = now + rng.uniform(0, config.sync_interval_s)
        self._agree_at_s = now
        self._tombstones: list[tuple[float, int]] = []

    # -- what others may ask ------------------------------------------------------------

    @property
    def view(self) -> View:
        """What is known of all nodes; the same object always."""
        return self._store.view

    @property
    def sent_bytes(self) -> int:
        """All bytes sent so far, by the machine's own (upper) estimate."""
        return self._desk.budget.sent_bytes

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
        desk = self._desk
        desk.out = []
        desk.now = now
        match event:
            case Received(sender, _, message):
                self._received(sender, message)
            case MemberAlive() | MemberSuspect() | MemberDead() | MemberLeft() | MemberForgotten():
                self._member_changed(event)
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
            self._pusher.fresh()
        if now >= self._sync_at_s:
            self._sync_at_s = now + self._config.sync_interval_s * desk.rng.uniform(0.75, 1.25)
            self._syncer.start()
        return desk.out

    # -- who is here ------------------------------------------------------------

    def _member_changed(self, event: MemberAlive | MemberSuspect | MemberDead | MemberLeft | MemberForgotten) -> None:
        member, now = event.member, self._desk.now
        match event:
            case MemberAlive() | MemberSuspect():
                suspect = isinstance(event, MemberSuspect)
                came = self._store.appear(member.node, member.generation, suspect=suspect)
                if came and len(self._store.peers) == 1:
                    self._sync_at_s = now  # this node was alone until now: it has everything to learn
            case MemberDead():
                self._store.die(member.node, member.generation, now)
            case MemberLeft() | MemberForgotten():
                self._store.depart(member.node, member.generation, now)
                self._pusher.forget(member.node)
                self._syncer.forget(member.node)
        self._desk.budget.set_rate(self._config.budget_bytes_per_s(len(self._store.peers) + 1), now)

    # -- own entries ------------------------------------------------------------

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
            self._pusher.urgent()

    def _withdraw(self, keys: Iterable[str]) -> None:
        for key in keys:
            known = self._own.entries.get(key)
            if known is None or known.value is None:
                continue
            self._own.write(key, None)
            self._tombstones.append((self._desk.now, self._own.upto))
            self._store.show_entry(self._own, key)

    def _collect_tombstones(self) -> None:
        now, keep_s = self._desk.now, self._config.tombstone_s
        collected = [version for since_s, version in self._tombstones if now - since_s >= keep_s]
        if collected:
            self._own.raise_floor(collected[-1])
            del self._tombstones[: len(collected)]

    def _agree(self) -> None:
        """Tell which holder map this node sees, when that changed."""
        if self._desk.now < self._agree_at_s:
            return
        digest = self.view.holder_digest()
        if self.view.nodes[self._own.node].agreement != digest:
            self._agree_at_s = self._desk.now + self._config.agreement_s
            self._publish([Agreement(digest)], urgent=False)

    def _outlive(self, generation: int, version: int) -> None:
        """Others have this node's entries up to ``version``: write above what an earlier life left there."""
        if generation > self._own.generation:
            self._desk.out.append(LaterLife(generation))
        if generation != self._own.generation or version <= self._own.upto:
            return
        entries = list(self._own.entries.values())
        self._own.upto = version
        self._tombstones = []
        for entry in entries:
            self._own.write(entry.key, entry.value)
            if entry.value is None:
                self._tombstones.append((self._desk.now, self._own.upto))
        self._pusher.urgent()

    # -- messages ------------------------------------------------------------

    def _received(self, sender: NodeId, message: Message) -> None:
        match message:
            case GossipPush(deltas, relay, urgent):
                fresh, gaps = self._absorb(deltas, relay=relay)
                if urgent and relay and fresh:
                    self._pusher.pass_on_at_once(fresh)
                self._syncer.ask(sender, gaps)
            case GossipDigest(digests):
                for digest in digests:
                    if digest.node == self._own.node:
                        self._outlive(digest.generation, digest.upto)
                self._syncer.answer(sender, message)
            case GossipDelta(deltas, wants, more):
                self._absorb(deltas, relay=False)
                self._syncer.serve(sender, wants)
                if more:
                    self._sync_at_s = min(self._sync_at_s, self._desk.now + self._config.interval_s)
            case _:
                raise AssertionError(f"not a gossip message: {type(message).__name__}")

    def _absorb(self, deltas: Iterable[NodeDelta], *, relay: bool) -> tuple[list[Replica], list[NodeId]]:
        """Merge deltas; returns the replicas that grew and the owners of whom something is missing."""
        fresh: list[Replica] = []
        gaps: list[NodeId] = []
        for delta in deltas:
            node = NodeId(delta.node)
            if node == self._own.node:
                self._outlive(delta.generation, delta.upto)
                continue
            outcome = self._store.absorb(delta, self._desk.now)
            if outcome is None:
                continue
            replica = self._store.replicas[node]
            if outcome.gap:
                gaps.append(node)
                if relay and outcome.changed:
                    self._pusher.pass_on_loose(delta)
            elif replica.upto > outcome.had_upto:
                fresh.append(replica)
                if not relay:
                    # Everybody was told, or this is old news that was missed here.
                    self._pusher.needs_no_passing_on(replica, outcome.had_upto)
        return fresh, gaps
