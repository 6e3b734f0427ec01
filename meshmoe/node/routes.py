"""Whom to ask for an expert, and what that takes, remembered for a moment: the compute thread asks at every layer.

Who holds what is spread over several tables of the view, membership and what was measured; going through them takes
longer than a call's own work. What was found is kept until the mesh has changed, and never longer than `KEPT_S`, since
round trips and trust change without a word. A route that is out of date costs a detour and nothing else: the peer says
that it no longer has the expert, or its connection is gone, and the call goes on the usual way.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.node.expert_client import MeshKnowledge
from meshmoe.node.peer_times import PeerTimes

KEPT_S = 0.25

_MUCH_BYTES = 1 << 20
"""What a byte costs is told from a payload of so many."""


class Routes:
    """See the module; belongs to the compute thread."""

    def __init__(self, mesh: MeshKnowledge, times: PeerTimes) -> None:
        """Remember what ``mesh`` knows, less the peers that ``times`` distrusts."""
        self._mesh = mesh
        self._times = times
        self._version = -1
        self._until_s = 0.0
        self._now_s = 0.0
        self._holders: dict[tuple[int, int], tuple[Sequence[NodeId], bool]] = {}
        self._costs: dict[NodeId, tuple[float, float]] = {}

    def look(self, now_s: float) -> None:
        """Forget what may be out of date; before questions, once a call."""
        version = self._mesh.version  # read before anything else: what changes meanwhile has a later one
        if version != self._version or now_s >= self._until_s:
            self._version, self._until_s, self._now_s = version, now_s + KEPT_S, now_s
            self._holders.clear()
            self._costs.clear()

    def forget(self) -> None:
        """A peer has disappointed: what is known of holders may be wrong."""
        self._version = -1

    def holders(self, layer: int, expert: int) -> Sequence[NodeId]:
        """Reachable peers that hold an expert, without those that are distrusted if there are others."""
        return self._known(layer, expert)[0]

    def spare(self, layer: int, expert: int) -> bool:
        """Whether more than one peer holds an expert, trusted or not."""
        return self._known(layer, expert)[1]

    def _known(self, layer: int, expert: int) -> tuple[Sequence[NodeId], bool]:
        found = self._holders.get((layer, expert))
        if found is None:
            known = self._mesh.holders(ExpertId(layer, expert))
            spare = len(known) > 1
            if spare:
                known = [peer for peer in known if not self._times.distrusted(peer, self._now_s)] or known
            found = self._holders[layer, expert] = known, spare
        return found

    def call_time_s(self, peer: NodeId, payload_bytes: int) -> float:
        """See `MeshKnowledge.call_time_s`."""
        cost = self._costs.get(peer)
        if cost is None:
            fixed_s = self._mesh.call_time_s(peer, 0)
            byte_s = (self._mesh.call_time_s(peer, _MUCH_BYTES) - fixed_s) / _MUCH_BYTES
            cost = self._costs[peer] = fixed_s, byte_s
        return cost[0] + cost[1] * payload_bytes
