"""What this node has measured of its links, told to the mesh when it has changed enough to matter."""

from __future__ import annotations

from collections.abc import Iterable

from meshmoe.core.ids import NodeId
from meshmoe.gossip import Link, Links
from meshmoe.gossip.values import LINKS_MAX
from meshmoe.membership import Membership
from meshmoe.node.mesh import RateMeter

CHANGE_SHARE_MIN = 0.15
"""Less than this is noise, and not worth the bytes of a delta to every node."""


class LinkNews:
    """Remembers what was told last."""

    def __init__(self, membership: Membership, rates: RateMeter) -> None:
        self._membership = membership
        self._rates = rates
        self._told: dict[NodeId, Link] = {}

    def of(self, peers: Iterable[NodeId]) -> Links | None:
        """The links to ``peers`` (the first 256 by name), or None if the mesh knows them well enough."""
        links = {}
        for peer in sorted(peers)[:LINKS_MAX]:
            estimate = self._membership.rtt(peer)
            if estimate is not None:
                rate = self._rates.bytes_per_s(peer)
                links[peer] = Link(peer, round(estimate.median_ms * 1000), round(rate) if rate is not None else 0)
        if links.keys() == self._told.keys() and all(_alike(link, self._told[peer]) for peer, link in links.items()):
            return None
        self._told = links
        return Links(list(links.values()))


def _alike(now: Link, told: Link) -> bool:
    return all(
        abs(a - b) <= CHANGE_SHARE_MIN * max(a, b)
        for a, b in ((now.rtt_us, told.rtt_us), (now.rate_bytes_per_s, told.rate_bytes_per_s))
    )
