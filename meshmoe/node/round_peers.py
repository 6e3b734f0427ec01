"""The peers of compiled rounds, each with a row of the tables: who holds what, what asking takes, the connections.

A table that is out of date costs a detour, as in `meshmoe.node.routes`. A peer keeps its row until there are no more;
then those of peers that have gone are used again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.engine.rounds.tables import PEERS_MAX, Cost, Group, Office, Peer, Post
from meshmoe.node.expert_client import CallPatience
from meshmoe.node.peer_times import PeerTimes
from meshmoe.node.round_counts import RoundCounts
from meshmoe.node.round_senders import RoundSenders
from meshmoe.node.vigil import SOON_S
from meshmoe.transport.base import DirectLane

_MUCH_BYTES = 1 << 20
"""What a byte costs is told from a payload of so many."""


@runtime_checkable
class RoundsKnowledge(Protocol):
    """What has to be known of the mesh; asked on the compute thread.

    Attributes:
        node: This one.
    """

    node: NodeId

    @property
    def version(self) -> int:
        """See `meshmoe.node.expert_client.MeshKnowledge`."""
        ...

    @property
    def holders_version(self) -> int:
        """Grows with every change of who holds what, or of who is there."""
        ...

    def holder_map(self) -> Mapping[ExpertId, Sequence[NodeId]]:
        """All experts that somebody holds, this node included: a copy."""
        ...

    def suspected(self, peer: NodeId) -> bool | None:
        """Whether membership suspects a peer; None if it is not there."""
        ...

    def call_time_s(self, peer: NodeId, payload_bytes: int) -> float:
        """See `meshmoe.node.expert_client.MeshKnowledge`."""
        ...


class RoundPeers:
    """See the module; belongs to the compute thread."""

    def __init__(
        self,
        post: Post,
        lane: DirectLane,
        mesh: RoundsKnowledge,
        patience: CallPatience,
        times: PeerTimes,
        senders: RoundSenders,
        counts: RoundCounts,
    ) -> None:
        """No peer has a row.

        Args:
            post: The tables.
            lane: The data lane; has the connections.
            mesh: Who holds what, and how far away.
            patience: Of the usual way.
            times: How long peers take.
            senders: Told whose row goes to somebody else.
            counts: Told of that, and of connections.
        """
        self._post = post
        self._lane = lane
        self._mesh = mesh
        self._patience = patience
        self._times = times
        self._senders = senders
        self._counts = counts
        self._slots: dict[NodeId, int] = {}
        self._names: list[NodeId] = []
        self._holders_version = -1

    @property
    def names(self) -> Sequence[NodeId]:
        """Whose each row is."""
        return self._names

    def find(self, peer: NodeId) -> int:
        """The peer's row; -1 if it has none."""
        return self._slots.get(peer, -1)

    def slot(self, peer: NodeId) -> int:
        """The peer's row, from now on if it has had none; -1 if there are too many."""
        slot = self._slots.get(peer)
        if slot is not None:
            return slot
        if len(self._names) < PEERS_MAX:
            slot = len(self._names)
            self._names.append(peer)
        else:
            slot = self._unused()
            if slot < 0:
                return -1
            self._take_back(slot)
            self._names[slot] = peer
        self._slots[peer] = slot
        self._post.numbers[Office.PEERS] = len(self._names)
        self._tell_peer(peer, slot)
        for rank, name in enumerate(sorted(self._slots)):
            self._post.peers[self._slots[name], Peer.RANK] = rank
        return slot

    def _unused(self) -> int:
        """The row of a peer that has gone and is not waited for; -1 if there is none."""
        waited_for = set(self._post.groups[:, :, Group.PEER].ravel().tolist())
        for name, slot in self._slots.items():
            if self._mesh.suspected(name) is None and slot not in waited_for:
                return slot
        return -1

    def _take_back(self, slot: int) -> None:
        """Settle all that is its peer's."""
        self._counts.count(self._names)
        del self._slots[self._names[slot]]
        self._senders.forget(self._names[slot])
        owners = self._post.owners
        owners &= ~(1 << slot)
        self._holders_version = -1

    def tell(self, now_s: float) -> None:
        """Bring the tables up to date."""
        if self._mesh.holders_version != self._holders_version:
            self._tell_holders()
        suspected = distrusted = 0
        for peer, slot in self._slots.items():
            self._tell_peer(peer, slot)
            suspected |= bool(self._mesh.suspected(peer)) << slot
            distrusted |= self._times.distrusted(peer, now_s) << slot
        numbers = self._post.numbers
        numbers[Office.SUSPECTED], numbers[Office.DISTRUSTED] = suspected, distrusted

    def _tell_peer(self, peer: NodeId, slot: int) -> None:
        post, mesh = self._post, self._mesh
        port = self._lane.port(peer)
        row = post.peers[slot]
        if port != row[Peer.PORT]:
            row[Peer.PORT] = port
            self._counts.change_port(slot, peer, port)
        fixed_s = mesh.call_time_s(peer, 0)
        byte_s = (mesh.call_time_s(peer, _MUCH_BYTES) - fixed_s) / _MUCH_BYTES
        post.costs[slot, Cost.FIXED_S], post.costs[slot, Cost.BYTE_S] = fixed_s, byte_s
        row[Peer.DEADLINE_NS] = int(self._times.deadline_s(peer, self._patience.attempt_s) * 1e9)
        usual_s = self._times.usual_s(peer)
        row[Peer.USUAL_NS] = int(usual_s * 1e9) if usual_s <= SOON_S else 0

    def _tell_holders(self) -> None:
        self._holders_version = self._mesh.holders_version
        owners = self._post.owners
        layers, experts = owners.shape
        bits = [[0] * experts for _ in range(layers)]
        for (layer, expert), holders in self._mesh.holder_map().items():
            if layer < layers and expert < experts:
                for peer in holders:
                    if peer != self._mesh.node and (slot := self.slot(peer)) >= 0:
                        bits[layer][expert] |= 1 << slot
        owners[:] = bits
