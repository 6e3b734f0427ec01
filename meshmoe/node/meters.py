"""What a node's own requests take: sums, and durations in buckets (for Prometheus) and as percentiles (for people)."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from meshmoe.engine.request import GenerationStats

BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds: a compiled step of a small model takes 0.4 ms, a prompt's answer over a slow link a minute."""

RECENT = 1024
"""Durations that percentiles are taken over."""


class LatencyMeter:
    """One kind of duration. Costs a microsecond a measurement.

    Attributes:
        counts: For each of `BUCKETS_S`, and for what is longer than all: durations in that bucket alone.
        total_s: Sum of all durations.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def observe(self, took_s: float) -> None:
        """Take in a duration."""
        self.counts[bisect_left(BUCKETS_S, took_s)] += 1
        self.total_s += took_s
        self._recent.append(took_s)

    def percentiles_s(self, *shares: float) -> list[float | None]:
        """Percentiles of the recent ones by nearest rank, for shares from 0 to 1; None where there was none yet."""
        ordered = sorted(self._recent)
        if not ordered:
            return [None for _ in shares]
        return [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in shares]


@dataclass
class Meters:
    """What a node's own requests took since its start.

    Attributes:
        totals: Sums over the requests that have finished.
        first_token: From the arrival of a request to its first token.
        between_tokens: From one token of a request to its next.
    """

    totals: GenerationStats = field(default_factory=GenerationStats)
    first_token: LatencyMeter = field(default_factory=LatencyMeter)
    between_tokens: LatencyMeter = field(default_factory=LatencyMeter)

    def add(self, stats: GenerationStats) -> None:
        """Sum up a request that has finished."""
        for name in GenerationStats.__struct_fields__:
            setattr(self.totals, name, getattr(self.totals, name) + getattr(stats, name))
