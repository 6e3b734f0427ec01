"""All owners' replicas, who of them counts, and the deltas and digests made of them.

Membership alone decides who exists. Three sorts of owners:

- *present*: membership holds them for alive or suspect in this generation. Shown in the view, and passed on.
- *absent*: dead (in case the death is refuted), or not yet heard of by membership. Kept for a while, hidden, and not
  passed on: so what is known of the dead dies out.
- *departed*: left, or dead for long. Nothing is kept but the generation, below which everything is refused for a while:
  this is the floor of departed nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from meshmoe.core.ids import NodeId
from meshmoe.gossip.config import GossipConfig
from meshmoe.gossip.messages import NODES_MAX, NodeDelta, NodeDigest
from meshmoe.gossip.replica import Replica
from meshmoe.gossip.values import unpack
from meshmoe.gossip.view import View


class _Presence(msgspec.Struct, frozen=True):
    generation: int
    suspect: bool


class Absorbed(NamedTuple):
    """What a delta did: whether any value changed, whether a gap remains, and how far the replica was before."""

    changed: bool
    gap: bool
    had_upto: int


class Store:
    """See the module's text."""

    def __init__(self, config: GossipConfig, node: NodeId, generation: int) -> None:
        self._config = config
        self.own = self._new_replica(node, generation)
        self.replicas: dict[NodeId, Replica] = {node: self.own}
        self.view = View()
        self.invalid_values = 0
        """Entries whose bytes were not what their key promises."""
        self._present: dict[NodeId, _Presence] = {}
        self._absent_until_s: dict[NodeId, float] = {}
        self._departed: dict[NodeId, tuple[int, float]] = {}
        self.view.show(node, generation, suspect=False, values={})

    @property
    def peers(self) -> list[NodeId]:
        """Present nodes other than this one, in the order in which they came."""
        return list(self._present)

    def is_peer(self, node: NodeId) -> bool:
        """Whether a node is present, hence connected."""
        return node in self._present

    # -- membership's word ------------------------------------------------------------

    def appear(self, node: NodeId, generation: int, *, suspect: bool) -> bool:
        """Membership holds a node for alive or suspect; returns whether it was not present before in this life."""
        known = self._present.get(node)
        self._present[node] = _Presence(generation, suspect)
        self._absent_until_s.pop(node, None)
        self._departed.pop(node, None)
        replica = self.replicas.get(node)
        if replica is not None and replica.generation < generation:
            replica.start_life(generation)
        self._refresh(node)
        return known is None or known.generation != generation

    def die(self, node: NodeId, generation: int, now: float) -> None:
        """A node is dead: hide it, keep its entries for a while."""
        known = self._present.get(node)
        if known is None or known.generation == generation:
            self._present.pop(node, None)
            if node in self.replicas:
                self._absent_until_s[node] = now + self._config.dead_retain_s
            self.view.hide(node)

    def depart(self, node: NodeId, generation: int, now: float) -> None:
        """A node is gone for good: drop its entries, and refuse what is still on its way."""
        known = self._present.get(node)
        if known is not None and known.generation > generation:
            return
        self._present.pop(node, None)
        self._absent_until_s.pop(node, None)
        self.view.hide(node)
        replica = self.replicas.get(node)
        if replica is not None and replica.generation <= generation:
            del self.replicas[node]
        self._departed[node] = (generation, now + self._config.departed_s)
        while len(self._departed) > self._config.nodes_max:
            del self._departed[next(iter(self._departed))]

    def expire(self, now: float) -> None:
        """Drop what has been absent for long, and floors that nobody needs any more."""
        for node, until_s in list(self._absent_until_s.items()):
            if now >= until_s:
                self.depart(node, self.replicas[node].generation, now)
        for node, (_, until_s) in list(self._departed.items()):
            if now >= until_s:
                del self._departed[node]

    # -- deltas ------------------------------------------------------------

    def absorb(self, delta: NodeDelta, now: float) -> Absorbed | None:
        """Merge a delta of another owner; None if nothing is kept of that owner or life."""
        node = NodeId(delta.node)
        replica = self.replicas.get(node)
        if self.refuses(node, delta.generation) or (replica is None and len(self.replicas) >= self._config.nodes_max):
            return None
        if replica is None:
            replica = self.replicas[node] = self._new_replica(node, delta.generation)
        if node not in self._present:
            self._absent_until_s.setdefault(node, now + self._config.stranger_s)
        had_generation, had_upto = replica.generation, replica.upto
        changed, gap = replica.absorb(delta)
        if replica.generation != had_generation:
            had_upto = 0
        shown = self.view.nodes.get(node)
        if shown is not None and shown.generation == replica.generation:
            for key in changed:
                self.show_entry(replica, key)
        else:
            self._refresh(node)
        return Absorbed(changed=bool(changed), gap=gap, had_upto=had_upto)

    def show_entry(self, replica: Replica, key: str) -> None:
        """Bring one entry of a node that is shown into the view."""
        entry = replica.entries.get(key)
        value = unpack(key, entry.value) if entry is not None and entry.value is not None else None
        if value is None and entry is not None and entry.value is not None:
            self.invalid_values += 1
        self.view.set(replica.node, key, value)

    def refuses(self, node: NodeId, generation: int) -> bool:
        """Whether this life of a node is known to be over."""
        departed, present = self._departed.get(node), self._present.get(node)
        return (departed is not None and generation <= departed[0]) or (
            present is not None and generation < present.generation
        )

    def speakable(self, node: NodeId) -> Replica | None:
        """The replica of an owner if it may be passed on: this node's own, or that of a present node's present life."""
        if node == self.own.node:
            return self.own
        presence, replica = self._present.get(node), self.replicas.get(node)
        if presence is None or replica is None or replica.generation != presence.generation or not replica.complete:
            return None
        return replica

    def all_speakable(self) -> Iterator[Replica]:
        """All replicas that may be passed on, this node's own first."""
        yield self.own
        for node in self._present:
            replica = self.speakable(node)
            if replica is not None:
                yield replica

    # -- digests ------------------------------------------------------------

    def digests(self, pick: float) -> tuple[list[NodeDigest], NodeId | None, NodeId | None]:
        """What is here, of at most `NODES_MAX` owners; ``pick`` in [0, 1) chooses the range of names if there are more.

        Returns:
            The digests, the first name that they cover, and the first that they do not (None: no bound).
        """
        names = sorted(self.replicas)
        if len(names) <= NODES_MAX:
            return [self.replicas[name].digest() for name in names], None, None
        start = int(pick * len(names)) // NODES_MAX * NODES_MAX
        part = names[start : start + NODES_MAX]
        first = None if start == 0 else part[0]
        until = None if start + NODES_MAX >= len(names) else names[start + NODES_MAX]
        return [self.replicas[name].digest() for name in part], first, until

    def _new_replica(self, node: NodeId, generation: int) -> Replica:
        return Replica(node, generation, keys_max=self._config.keys_max, bytes_max=self._config.node_bytes_max)

    def _refresh(self, node: NodeId) -> None:
        """Show a node as membership holds it, with the entries of that life."""
        presence, replica = self._present.get(node), self.replicas.get(node)
        if presence is None:
            return
        if replica is not None and replica.generation != presence.generation:
            self.view.hide(node)  # there is a later life that membership has not spoken of yet
            return
        shown = self.view.nodes.get(node)
        values = {}
        if replica is not None and (shown is None or shown.generation != presence.generation):
            for key, data in replica.values():
                value = unpack(key, data)
                if value is not None:
                    values[key] = value
        self.view.show(node, presence.generation, suspect=presence.suspect, values=values)
