"""How fast weights may come in, from what expert calls pay for it: once a second, without sockets or clocks.

While nobody's calls are under way weights move as fast as they can. With calls, the rate starts at what a 500 Mbit/s
link carries and follows their 99th percentile (`meshmoe.custody.throttle.next_rate`), compared with what it was when
no weights moved. Where weights were moving before the first call, they are held back for `LISTEN_S`, to learn that.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from meshmoe.custody import next_rate
from meshmoe.custody.throttle import RATE_MAX_BYTES_PER_S, RATE_MIN_BYTES_PER_S

RATE_START_BYTES_PER_S = 62.5e6

LISTEN_S = 2
"""One second for what is on its way to come in, and one to listen."""

CALLS_MIN = 10
"""Fewer calls in a second have no 99th percentile to speak of."""

_CALLS_KEPT = 1024
_RECENT_KEPT = 8192


class CallTimes(NamedTuple):
    """Decode calls of a while: how many, and their median and 99th percentile in seconds (0 if there were none)."""

    calls: int
    p50_s: float
    p99_s: float


class CallLatency:
    """What decode calls took: since the pacer asked last, and over the last seconds for whoever wants to see it."""

    def __init__(self) -> None:
        self._took_s: deque[float] = deque(maxlen=_CALLS_KEPT)
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT_KEPT)

    def note(self, took_s: float, now_s: float) -> None:
        """A call was answered; on any thread."""
        self._took_s.append(took_s)
        self._recent.append((now_s, took_s))

    def since(self, begin_s: float) -> CallTimes:
        """Calls answered since then, as far as the last 8,192 reach."""
        took_s = sorted(took_s for at_s, took_s in list(self._recent) if at_s >= begin_s)
        if not took_s:
            return CallTimes(0, 0.0, 0.0)
        return CallTimes(len(took_s), took_s[len(took_s) // 2], took_s[int(0.99 * (len(took_s) - 1))])

    def take_p99_s(self) -> float:
        """The 99th percentile since this was asked last; 0 when there were fewer than `CALLS_MIN` calls."""
        took_s = sorted(self._took_s)
        self._took_s.clear()
        return took_s[int(0.99 * (len(took_s) - 1))] if len(took_s) >= CALLS_MIN else 0.0


class Pacer:
    """Decides the rate; ask it once a second."""

    def __init__(self) -> None:
        self.rate_bytes_per_s = RATE_MAX_BYTES_PER_S
        self._calm_p99_s = 0.0
        self._listened_s = 0
        self._fastest_bytes_per_s = 0.0

    def step(self, p99_s: float, *, moving: bool, moved_bytes: int = 0) -> float:
        """Take in one second.

        Args:
            p99_s: Of the calls in it; 0 when there were too few.
            moving: Whether weights were coming in.
            moved_bytes: How much of them came.

        Returns:
            The rate for the next second.
        """
        self._fastest_bytes_per_s = max(self._fastest_bytes_per_s, float(moved_bytes))
        if p99_s <= 0:
            self.rate_bytes_per_s = RATE_MAX_BYTES_PER_S
        elif not moving:
            self._calm_p99_s = p99_s if self._calm_p99_s <= 0 else 0.8 * self._calm_p99_s + 0.2 * p99_s
            self.rate_bytes_per_s = RATE_START_BYTES_PER_S
        elif self._calm_p99_s <= 0:
            self._listen(p99_s)
        elif self.rate_bytes_per_s == RATE_MAX_BYTES_PER_S:
            self.rate_bytes_per_s = RATE_START_BYTES_PER_S
        else:
            self.rate_bytes_per_s = next_rate(
                self.rate_bytes_per_s, p99_s, self._calm_p99_s, float(moved_bytes), self._fastest_bytes_per_s
            )
        return self.rate_bytes_per_s

    def _listen(self, p99_s: float) -> None:
        """Weights were moving before the first call: hold them back, to learn what calls take without them."""
        if self._listened_s < LISTEN_S:
            self._listened_s += 1
            self.rate_bytes_per_s = RATE_MIN_BYTES_PER_S
        else:
            self._listened_s, self._calm_p99_s = 0, p99_s
            self.rate_bytes_per_s = RATE_START_BYTES_PER_S
