"""How a node's serving went lately, one sample every few seconds: what the topology page draws over time."""

from __future__ import annotations

import time
from collections import deque

import msgspec

from meshmoe.engine.request import GenerationStats

SAMPLE_INTERVAL_S = 5.0
SAMPLES_MAX = 720
"""An hour."""


class HistorySample(msgspec.Struct, frozen=True, kw_only=True):
    """What happened since the sample before.

    Attributes:
        at_s: Wall clock at its end, seconds since 1970.
        tokens_per_s: Tokens a second written by all requests.
        hit_ratio: Share of expert calls served locally, of requests that finished; None if none did.
        rounds_per_token: Rounds a decoded token of these; None likewise.
    """

    at_s: float
    tokens_per_s: float
    hit_ratio: float | None = None
    rounds_per_token: float | None = None


class History:
    """The last hour."""

    def __init__(self) -> None:
        self.samples: deque[HistorySample] = deque(maxlen=SAMPLES_MAX)
        self._before = GenerationStats()
        self._written_before = 0
        self._at_s = time.monotonic()

    def sample(self, totals: GenerationStats, tokens_written: int) -> None:
        """Take a sample.

        Args:
            totals: Sums over all requests that have finished since the node's start.
            tokens_written: By all requests since then, those under way included.
        """
        now_s = time.monotonic()
        local = totals.expert_calls_local - self._before.expert_calls_local
        calls = local + totals.expert_calls_remote - self._before.expert_calls_remote
        told = totals.decode_tokens - self._before.decode_tokens
        rounds = totals.decode_rounds - self._before.decode_rounds
        written = max(0, tokens_written - self._written_before)
        self.samples.append(
            HistorySample(
                at_s=round(time.time(), 1),
                tokens_per_s=round(written / max(now_s - self._at_s, 1e-3), 2),
                hit_ratio=round(local / calls, 4) if calls else None,
                rounds_per_token=round(rounds / told, 3) if told else None,
            )
        )
        self._before, self._written_before, self._at_s = msgspec.structs.replace(totals), tokens_written, now_s
