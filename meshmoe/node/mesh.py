"""What this node knows of its mesh, put into the questions that dispatch and custody ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import trio

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip.view import NodeView, View
from meshmoe.membership import Membership

RTT_UNKNOWN_S = 0.05
"""Assumed before the first probe was answered: like a slow WAN, so that measured peers are preferred."""

RATE_UNKNOWN_BYTES_PER_S = 12.5e6
"""Assumed before the first transfer: 100 Mbit/s."""

_RATE_GAIN = 0.3


class RateMeter:
    """Bandwidth to each peer from real transfers, smoothed."""

    def __init__(self) -> None:
        self._rates: dict[NodeId, float] = {}

    def observe(self, peer: NodeId, size_bytes: int, took_s: float) -> None:
        """Take in a transfer of at least a few hundred kilobytes."""
        rate = size_bytes / took_s
        known = self._rates.get(peer)
        self._rates[peer] = rate if known is None else known + _RATE_GAIN * (rate - known)

    def bytes_per_s(self, peer: NodeId) -> float | None:
        """The present estimate, None before the first transfer."""
        return self._rates.get(peer)


class Mesh:
    """Holders and costs; see `meshmoe.node.expert_client.MeshKnowledge`.

    The compute thread asks, too: `holders` and `call_time_s` look up single keys of what the trio thread replaces as a
    whole, and never go through a collection that may change meanwhile.
    """

    def __init__(self, node: NodeId, view: View, membership: Membership, rates: RateMeter) -> None:
        self.node = node
        self.view = view
        self.rates = rates
        self._membership = membership
        self._changed = trio.Event()

    def announce_change(self) -> None:
        """Wake everybody who waits for news of the mesh."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_changed(self) -> None:
        """Wait for the next change of the view, of membership, or of what is resident here."""
        await self._changed.wait()

    @property
    def version(self) -> int:
        """Grows after every change of the view, suspicions included."""
        return self.view.version

    def holders(self, expert: ExpertId) -> Sequence[NodeId]:
        """Peers that hold ``expert``; suspects only where there is nobody else."""
        nodes = self.view.nodes
        others = [peer for peer in self.view.holders(expert) if peer != self.node]
        trusted = [peer for peer in others if (node := nodes.get(peer)) is not None and not node.suspect]
        return trusted or others

    @property
    def holders_version(self) -> int:
        """Grows with every change of who holds what, or of who is present."""
        return self.view.holders_version

    def holder_map(self) -> dict[ExpertId, tuple[NodeId, ...]]:
        """All experts that somebody holds, with their holders: a copy, in one step."""
        return self.view.holder_map()

    def suspected(self, peer: NodeId) -> bool | None:
        """Whether membership suspects a peer; None if it is not present."""
        node = self.view.nodes.get(peer)
        return None if node is None else node.suspect

    def call_time_s(self, peer: NodeId, payload_bytes: int) -> float:
        """Round trip, bytes over bandwidth, and what the peer last told of its queue and of computing an expert."""
        rate = self.rates.bytes_per_s(peer) or RATE_UNKNOWN_BYTES_PER_S
        node = self.view.nodes.get(peer)
        queue_us = node.load.queue_us if node is not None and node.load is not None else 0
        call_us = node.info.expert_call_us if node is not None and node.info is not None else 0
        return self.rtt_s(peer) + payload_bytes / rate + (queue_us + call_us) / 1e6

    def rtt_s(self, peer: NodeId) -> float:
        """Median round trip as measured by probes."""
        estimate = self._membership.rtt(peer)
        return RTT_UNKNOWN_S if estimate is None else estimate.median_ms / 1000

    def serving(self) -> dict[NodeId, NodeView]:
        """Peers that have introduced themselves by gossip and are not leaving."""
        return {
            node: view
            for node, view in self.view.nodes.items()
            if node != self.node and view.info is not None and view.info.state != "leaving"
        }

    def sources(self, expert: ExpertId) -> list[NodeId]:
        """Peers from whose disk an expert can be fetched, nearest first: its holders, then who has all files."""
        holders = set(self.view.holders(expert)) - {self.node}
        whole = {node for node, view in self.view.nodes.items() if view.info is not None and view.info.stores_model}
        return self.nearest_first(holders) + self.nearest_first(whole - holders - {self.node})

    def nearest_first(self, peers: Iterable[NodeId]) -> list[NodeId]:
        """Peers by round trip, then name."""
        return sorted(peers, key=lambda peer: (self.rtt_s(peer), peer))
