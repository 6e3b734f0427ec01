"""A network between addresses that loses, repeats, delays, reorders and holds back, and can be cut one way or both.

What is carried are callbacks. The fates of a message are decided when it is sent, by the world's chance; only a cut is
looked at again on arrival. Weights additionally queue for the bandwidth of their link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from meshmoe.core.ids import NodeId
from meshmoe.sim.clock import Clock

Link = tuple[NodeId, NodeId]
"""From whom to whom."""


@dataclass
class Weather:
    """How bad the network is everywhere; the default is a quiet LAN.

    Attributes:
        loss: Share of messages that never arrive.
        duplication: Share that arrive twice.
        delay_s: Least time on the way.
        jitter_s: Mean of what comes on top, exponentially distributed: messages overtake each other.
        rate_bytes_per_s: Of each link, for weights.
    """

    loss: float = 0.0
    duplication: float = 0.0
    delay_s: float = 0.0005
    jitter_s: float = 0.0005
    rate_bytes_per_s: float = 50e6


class Network:
    """Carries callbacks from node to node."""

    def __init__(self, clock: Clock, rng: Random) -> None:
        self.weather = Weather()
        self.cut: set[Link] = set()
        """Links that carry nothing."""
        self.carried = 0
        self._clock = clock
        self._rng = rng
        self._clogged_until_s: dict[Link, float] = {}
        self._busy_until_s: dict[Link, float] = {}

    def carry(self, link: Link, deliver: Callable[[], None], size_bytes: int = 0) -> None:
        """Deliver, perhaps, perhaps twice, some time; weights (``size_bytes``) after those before them."""
        weather, now = self.weather, self._clock.now
        bulk_s = 0.0
        if size_bytes:
            start_s = max(now, self._busy_until_s.get(link, now))
            self._busy_until_s[link] = start_s + size_bytes / weather.rate_bytes_per_s
            bulk_s = self._busy_until_s[link] - now
        for _ in range(2 if self._rng.random() < weather.duplication else 1):
            if link in self.cut or self._rng.random() < weather.loss:
                continue
            self.carried += 1
            arrive_s = now + weather.delay_s + self._rng.expovariate(1.0) * weather.jitter_s + bulk_s
            arrive_s = max(arrive_s, self._clogged_until_s.get(link, 0.0))
            self._clock.at(arrive_s, lambda: self._arrive(link, deliver))

    def split(self, nodes: Iterable[NodeId], until_s: float, *, one_way: bool) -> None:
        """Cut the nodes in two at random, in one direction or both, until a time."""
        names = list(nodes)
        side = {node for node in names if self._rng.random() < 0.5}
        links = {(node, other) for node in names for other in names if node in side and other not in side}
        if not one_way:
            links |= {(other, node) for node, other in links}
        self.cut |= links
        self._clock.at(until_s, lambda: self.cut.difference_update(links))

    def clog(self, link: Link, until_s: float) -> None:
        """Hold back everything on a link until then, when it arrives at once."""
        self._clogged_until_s[link] = until_s

    def heal(self) -> None:
        """Fair weather from now on; what is held back or on its way still comes."""
        self.weather = Weather()
        self.cut.clear()
        self._clogged_until_s.clear()

    def _arrive(self, link: Link, deliver: Callable[[], None]) -> None:
        if link not in self.cut:
            deliver()
