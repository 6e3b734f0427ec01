"""Whom to ask for an expert, and what that takes, remembered for a moment: the compute thread asks at every layer.

Who holds what is spread over several tables of the view, membership and what was measured; going through them takes
longer than a call's own work. What was found is kept until the mesh has changed, and never longer than `KEPT_S`, since
round trips and trust change without a word. A route that is out of date costs a detour and nothing else: the peer says
that it no longer has the expert, or its connection is gone, and the call goes on the usual way.

Each peer has a bit here, and each expert the bits of its holders, so that the usual question of a decode step, whether
one peer holds all that a layer lacks, is one `and` an expert. Where that is not so, or not clearly as fast,
`meshmoe.placement.holder_choice` decides; what is decided is the same either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.node.expert_client import MeshKnowledge
from meshmoe.node.peer_times import PeerTimes
from meshmoe.placement.holder_choice import SLACK, choose_holders

KEPT_S = 0.25

_MUCH_BYTES = 1 << 20
"""What a byte costs is told from a payload of so many."""


class _Known(NamedTuple):
    """Of one expert: its holders, their bits, and whether there are several, trusted or not."""

    holders: Sequence[NodeId]
    bits: int
    spare: bool


class Choice(NamedTuple):
    """Who is asked for what.

    Attributes:
        experts: For each peer, ascending.
        spare: Whether each of the experts has more than one holder.
    """

    experts: dict[NodeId, list[int]]
    spare: bool


class Routes:
    """See the module; belongs to the compute thread."""

    def __init__(self, mesh: MeshKnowledge, times: PeerTimes) -> None:
        """Remember what ``mesh`` knows, less the peers that ``times`` distrusts."""
        self._mesh = mesh
        self._times = times
        self._version = -1
        self._until_s = 0.0
        self._now_s = 0.0
        self._known: dict[int, dict[int, _Known]] = {}
        """By layer and expert."""
        self._costs: dict[NodeId, tuple[float, float]] = {}
        self._bits: dict[NodeId, int] = {}
        self._nearest: dict[int, tuple[NodeId, int]] = {}
        """Of the peers that some bits stand for."""

    def look(self, now_s: float) -> None:
        """Forget what may be out of date; before questions, once a call."""
        version = self._mesh.version  # read before anything else: what changes meanwhile has a later one
        if version != self._version or now_s >= self._until_s:
            self._version, self._until_s, self._now_s = version, now_s + KEPT_S, now_s
            for kept in (self._known, self._costs, self._bits, self._nearest):
                kept.clear()

    def forget(self) -> None:
        """A peer has disappointed: what is known of holders may be wrong."""
        self._version = -1

    def holders(self, layer: int, expert: int) -> Sequence[NodeId]:
        """Reachable peers that hold an expert, without those that are distrusted if there are others."""
        return self._find(layer, expert).holders

    def call_time_s(self, peer: NodeId, payload_bytes: int) -> float:
        """See `MeshKnowledge.call_time_s`."""
        cost = self._costs.get(peer)
        if cost is None:
            fixed_s = self._mesh.call_time_s(peer, 0)
            byte_s = (self._mesh.call_time_s(peer, _MUCH_BYTES) - fixed_s) / _MUCH_BYTES
            cost = self._costs[peer] = fixed_s, byte_s
        return cost[0] + cost[1] * payload_bytes

    def choose(self, layer: int, rows: Mapping[int, Sequence[int]], row_bytes: int) -> Choice | None:
        """Choose holders as `choose_holders` does.

        Args:
            layer: MoE layer ordinal.
            rows: The experts, each with its rows; at least one.
            row_bytes: What a row moves, there and back.

        Returns:
            None where some expert has nobody.
        """
        found, common, spare, count = [], -1, True, 0
        known_here = self._known.get(layer)
        for expert, numbers in rows.items():
            known = known_here.get(expert) if known_here is not None else None
            if known is None:
                known = self._find(layer, expert)
            if not known.bits:
                return None
            found.append(known.bits)
            common &= known.bits
            spare = spare and known.spare
            count += len(numbers)
        if common:
            peer, bit = self._nearest_of(common)
            # No choice at all, or all from one is within the bound that its own slowest branch sets already.
            if common == bit == found[0] and found.count(bit) == len(found):
                return Choice({peer: sorted(rows)}, spare)
            if bit in found and self.call_time_s(peer, count * row_bytes) <= SLACK * self.call_time_s(peer, row_bytes):
                return Choice({peer: sorted(rows)}, spare)
        counts = {expert: len(numbers) for expert, numbers in rows.items()}
        holders = {expert: self.holders(layer, expert) for expert in rows}
        chosen = choose_holders(counts, holders, lambda peer, n: self.call_time_s(peer, n * row_bytes))
        return Choice(chosen, spare)

    def _find(self, layer: int, expert: int) -> _Known:
        here = self._known.setdefault(layer, {})
        found = here.get(expert)
        if found is None:
            holders = self._mesh.holders(ExpertId(layer, expert))
            spare = len(holders) > 1
            if spare:
                holders = [peer for peer in holders if not self._times.distrusted(peer, self._now_s)] or holders
            bits = 0
            for peer in holders:
                bits |= self._bits.setdefault(peer, 1 << len(self._bits))
            found = here[expert] = _Known(holders, bits, spare)
        return found

    def _nearest_of(self, bits: int) -> tuple[NodeId, int]:
        """The peer that answers an empty call first, of those that ``bits`` stand for, and its bit."""
        found = self._nearest.get(bits)
        if found is None:
            peers = [(self.call_time_s(peer, 0), peer, bit) for peer, bit in self._bits.items() if bit & bits]
            _, peer, bit = min(peers)
            found = self._nearest[bits] = peer, bit
        return found
