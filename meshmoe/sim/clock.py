"""Virtual time: callbacks in the order of their times, ties in the order in which they were set."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

STILL_MAX = 20_000
"""Callbacks at one and the same time: more means that some timer is set for now again and again."""


class StandstillError(AssertionError):
    """Virtual time does not advance any more."""


class Clock:
    """Runs callbacks; nothing happens between them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0
        self._order = count()
        self._still = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, when_s: float, call: Callable[[], None]) -> None:
        """Call then; or now, if that is past."""
        heapq.heappush(self._queue, (max(when_s, self.now), next(self._order), call))

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call so much later."""
        self.at(self.now + delay_s, call)

    def run_until(self, end_s: float) -> None:
        """Run everything up to a time.

        Raises:
            StandstillError: Too many callbacks at one time.
        """
        while self._queue and self._queue[0][0] <= end_s:
            when_s, _, call = heapq.heappop(self._queue)
            self._still = self._still + 1 if when_s == self.now else 0
            if self._still > STILL_MAX:
                raise StandstillError(f"time stands still at {when_s:.3f} s: a timer is set for now again and again")
            self.now = when_s
            self.calls += 1
            call()
        self.now = end_s
