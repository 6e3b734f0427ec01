"""Anti-entropy: two nodes compare what they have and repair what either lacks (scuttlebutt's push-pull).

::

    asker                                answerer
      |--- GossipDigest: what I have ------->|
      |<-- GossipDelta: what you lack, ------|
      |    what I lack ("wants")             |
      |--- GossipPush: what you lack ------->|

A `GossipDelta` with wants alone also serves to ask for what came before a push that left a gap.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshmoe.core.ids import NodeId
from meshmoe.gossip.desk import PART_BYTES_MIN, Desk
from meshmoe.gossip.messages import (
    NODES_MAX,
    GossipDelta,
    GossipDigest,
    GossipPush,
    NodeDelta,
    NodeDigest,
    digest_bytes,
)
from meshmoe.gossip.replica import Replica


class Syncer:
    """Stateless but for when it last asked for what."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._asked_s: dict[NodeId, float] = {}

    def start(self) -> None:
        """Send digests to one random peer."""
        desk = self._desk
        peers = desk.store.peers
        if peers and desk.available_bytes():
            digests, first, until = desk.store.digests(desk.rng.random())
            desk.send(desk.rng.choice(peers), GossipDigest(digests, first, until))

    def answer(self, sender: NodeId, message: GossipDigest) -> None:
        """Send what the sender lacks, and ask for what it has and this node lacks."""
        desk = self._desk
        room = desk.available_bytes()
        if not room or not desk.store.is_peer(sender):
            return
        wants = self._behind(message.digests)
        room -= sum(map(digest_bytes, wants))
        theirs = {NodeId(digest.node): digest for digest in message.digests}
        replicas = [
            replica for replica in desk.store.all_speakable() if replica.node != sender and message.covers(replica.node)
        ]
        desk.rng.shuffle(replicas)  # when not all fits, different answerers send different parts
        deltas, more = _missing(((replica, theirs.get(replica.node)) for replica in replicas), room)
        if deltas or wants:
            desk.send(sender, GossipDelta(deltas, wants, more))

    def serve(self, sender: NodeId, wants: Iterable[NodeDigest]) -> None:
        """Send what a peer asked for."""
        desk = self._desk
        room = desk.available_bytes()
        if not room or not desk.store.is_peer(sender):
            return
        found = ((desk.store.speakable(NodeId(want.node)), want) for want in wants)
        deltas, _ = _missing(((replica, want) for replica, want in found if replica is not None), room)
        if deltas:
            desk.send(sender, GossipPush(deltas, relay=False))

    def ask(self, sender: NodeId, gaps: Iterable[NodeId]) -> None:
        """Ask the sender of a push for what came before it, once an interval for each owner."""
        desk = self._desk
        wants: list[NodeDigest] = []
        for node in gaps:
            if desk.now - self._asked_s.get(node, -desk.config.interval_s) >= desk.config.interval_s:
                self._asked_s[node] = desk.now
                wants.append(desk.store.replicas[node].digest())
        if wants and desk.store.is_peer(sender):
            desk.send(sender, GossipDelta(wants=wants))

    def forget(self, node: NodeId) -> None:
        """An owner is gone."""
        self._asked_s.pop(node, None)

    def _behind(self, digests: Iterable[NodeDigest]) -> list[NodeDigest]:
        """Digests of this node's own state where it lacks something that others have."""
        store = self._desk.store
        behind: list[NodeDigest] = []
        for digest in digests:
            node = NodeId(digest.node)
            if node == store.own.node or store.refuses(node, digest.generation):
                continue
            ours = store.replicas.get(node)
            if ours is None or ours.generation < digest.generation:
                behind.append(NodeDigest(node, digest.generation, 0))
            elif ours.generation == digest.generation and ours.upto < digest.upto:
                behind.append(ours.digest())
        return behind


def _missing(asked: Iterable[tuple[Replica, NodeDigest | None]], room: int) -> tuple[list[NodeDelta], bool]:
    """Deltas that bring the given digests up to the replicas beside them, and whether something did not fit."""
    deltas: list[NodeDelta] = []
    for replica, digest in asked:
        after = missing_after(replica, digest)
        if after is None:
            continue
        if room < PART_BYTES_MIN // 4 or len(deltas) == NODES_MAX:
            return deltas, True
        delta, size, cut = replica.delta(after, room)
        deltas.append(delta)
        room -= size
        if cut:
            return deltas, True
    return deltas, False


def missing_after(replica: Replica, digest: NodeDigest | None) -> int | None:
    """From which version a holder of ``digest`` lacks something of ``replica``; None when it lacks nothing."""
    if digest is None or digest.generation < replica.generation:
        return 0 if replica.upto > 0 else None
    if digest.generation > replica.generation or digest.upto >= replica.upto:
        return None
    return replica.start_for(digest.upto, digest.floor)
