"""Counters of every peer, bounded in number."""

from __future__ import annotations

import msgspec

from meshmoe.core.ids import NodeId
from meshmoe.transport.base import LinkStats


class Ledger:
    """`LinkStats` by peer. Names come from the network, so only so many are kept; the rest share one entry."""

    def __init__(self, peers_max: int = 4096) -> None:
        self._peers_max = peers_max
        self._stats: dict[NodeId, LinkStats] = {}
        self._overflow = LinkStats()

    def of(self, peer: NodeId) -> LinkStats:
        """The live counters of ``peer``, to be counted up."""
        stats = self._stats.get(peer)
        if stats is None:
            if len(self._stats) >= self._peers_max:
                return self._overflow
            stats = self._stats[peer] = LinkStats()
        return stats

    def snapshot(self, peer: NodeId) -> LinkStats:
        """A copy of the counters of ``peer``; zeros if nothing was ever counted."""
        stats = self._stats.get(peer)
        return LinkStats() if stats is None else msgspec.structs.replace(stats)
