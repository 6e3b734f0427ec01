"""Every number of the gossip protocol, with its formula and what happens when it is changed.

``n`` is the number of present nodes, this one included; ``c`` is what one node changes a second, in bytes (about 150:
a load report a second, one layer's demand a second, links now and then). Measured traffic is in
docs/decisions/gossip-entries.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """Knobs of `meshmoe.gossip.Gossip`.

    Attributes:
        interval_s: Changes wait at most this long before they are pushed. Lower spreads sooner and merges fewer changes
            of one key into one sending.
        direct_max: Up to so many peers a node pushes its own changes straight to each of them, twice, and nobody passes
            them on: one hop, and ``2 (n - 1) c`` bytes a second sent, which relaying cannot beat. Above it the number
            of messages would grow too large, and changes spread epidemically instead.
        fanout: Peers that each node pushes fresh entries to in an interval when they spread epidemically. Each node
            passes an entry on once: about ``1 - exp(-fanout)`` of the nodes get it by pushes in about
            ``log(n) / log(fanout)`` intervals, at ``fanout * n * c`` bytes a second sent by each; anti-entropy brings
            it to the rest. 2 halves the bytes and leaves 14 % of the nodes to anti-entropy instead of 2 %.
        urgent_mult: An urgent change (holdings, claims, leaving) is pushed at once, to everybody if there are at most
            ``direct_max`` peers, else to ``ceil(urgent_mult * log2(n))`` random ones, who pass it on at once.
        sync_interval_s: Each node compares digests with one random peer in this time: the repair of everything that
            was lost. A digest takes about ``18 n`` bytes.
        budget_base_bytes_per_s, budget_node_bytes_per_s, budget_max_bytes_per_s: What a node may send:
            ``min(max, base + node * n)``: 15 kB/s at 10 nodes, 105 kB/s at 100. When changes would need more, pushes
            wait and merge (a key's newer value replaces the one that waits), so entries become older, not more.
            Urgent changes never wait: they overdraw, and the rest waits longer.
        burst_s: Unused budget is saved up for so many seconds.
        sync_reserve: This share of the saved budget is kept from pushes, so that repair is never starved.
        message_bytes: A message is cut at this size; the rest follows in the next. Small enough not to hold up probes
            on a slow link (16 kB takes 1.3 ms at 100 Mbit/s), large enough that a node's whole state mostly fits.
        tombstone_s: A removed key's tombstone is kept by its owner so long; then its version is under the *floor* and
            whoever was away for longer gets the owner's whole state anew.
        dead_retain_s: Entries of a dead node are kept (and hidden) so long, in case the death is refuted.
        stranger_s: Entries of a node that membership has not (yet) spoken of are kept (and hidden) so long.
        departed_s: The generation of a node that left is remembered so long, and its entries, still on their way, are
            refused.
        agreement_s: The digest of the holder map is computed and published at most once in this time.
        nodes_max: Owners held; entries of further ones are refused.
        keys_max: Keys held of one owner, tombstones included: four for each of 1,000 layers.
        node_bytes_max: Bytes of values held of one owner.
    """

    interval_s: float = 0.5
    direct_max: int = 16
    fanout: int = 4
    urgent_mult: float = 2.0
    sync_interval_s: float = 1.0
    budget_base_bytes_per_s: float = 5_000.0
    budget_node_bytes_per_s: float = 1_000.0
    budget_max_bytes_per_s: float = 250_000.0
    burst_s: float = 4.0
    sync_reserve: float = 0.25
    message_bytes: int = 16_384
    tombstone_s: float = 600.0
    dead_retain_s: float = 300.0
    stranger_s: float = 60.0
    departed_s: float = 600.0
    agreement_s: float = 2.0
    nodes_max: int = 2048
    keys_max: int = 4096
    node_bytes_max: int = 1 << 20

    def budget_bytes_per_s(self, n: int) -> float:
        """What a node may send among ``n``."""
        return min(self.budget_max_bytes_per_s, self.budget_base_bytes_per_s + self.budget_node_bytes_per_s * n)

    def urgent_peers(self, n: int) -> int:
        """How many peers get an urgent change at once when they are too many to tell them all."""
        return math.ceil(self.urgent_mult * math.log2(max(2, n)))


DEFAULT = GossipConfig()
"""For meshes of any size; links slower than 5 Mbit/s want a smaller budget."""
