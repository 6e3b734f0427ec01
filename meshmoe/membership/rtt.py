"""Round-trip times to one member, from its acks.

Three figures, each for another question: the smoothed mean for expected cost, the median because one late scheduling
on a busy box moves a mean but not a median, the least for the link itself without queues. Karn's rule holds by
construction: each sending of a probe carries its own attempt number, so an ack is never matched with the wrong
sending.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import msgspec

_GAIN = 0.125
"""Weight of a new sample in the smoothed mean, as in TCP (RFC 6298)."""

_WINDOW = 16
"""Samples that median and least look back on: a moved laptop's old link is forgotten after so many probes."""


class RttEstimate(msgspec.Struct, frozen=True):
    """Round trip to a member in milliseconds, over ``samples`` measurements of this life of it."""

    smoothed_ms: float
    median_ms: float
    min_ms: float
    samples: int


class RttMeter:
    """Collects samples of one member."""

    __slots__ = ("_count", "_recent_ms", "_smoothed_ms", "estimate")

    def __init__(self) -> None:
        self._recent_ms: deque[float] = deque(maxlen=_WINDOW)
        self._smoothed_ms = 0.0
        self._count = 0
        self.estimate: RttEstimate | None = None
        """The present figures; None before the first sample."""

    def add(self, rtt_s: float) -> None:
        """Take in one measured round trip."""
        rtt_ms = max(0.0, rtt_s * 1000)
        self._smoothed_ms = rtt_ms if not self._count else self._smoothed_ms + _GAIN * (rtt_ms - self._smoothed_ms)
        self._recent_ms.append(rtt_ms)
        self._count += 1
        self.estimate = RttEstimate(self._smoothed_ms, median(self._recent_ms), min(self._recent_ms), self._count)
