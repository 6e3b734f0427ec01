"""Deadlines by name, the earliest first.

A machine without a clock of its own says when it wants to be called again; this keeps those times. Setting a name again
moves it. Cancelled and moved entries stay in the heap until they surface: cheaper than finding them.
"""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

K = TypeVar("K")


class Timers(Generic[K]):
    """A set of named deadlines on the machine's clock."""

    __slots__ = ("_at_s", "_heap", "_serial")

    def __init__(self) -> None:
        self._at_s: dict[K, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0

    def __contains__(self, key: K) -> bool:
        return key in self._at_s

    def set(self, key: K, at_s: float) -> None:
        """Name a deadline, or move it."""
        self._serial += 1
        self._at_s[key] = (at_s, self._serial)
        heapq.heappush(self._heap, (at_s, self._serial, key))

    def cancel(self, key: K) -> None:
        """Forget a deadline; unknown names are fine."""
        self._at_s.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._at_s.clear()
        self._heap.clear()

    def next_s(self) -> float:
        """The earliest deadline; infinity when there is none."""
        while self._heap:
            at_s, serial, key = self._heap[0]
            if self._at_s.get(key) == (at_s, serial):
                return at_s
            heapq.heappop(self._heap)
        return math.inf

    def pop_due(self, now: float) -> K | None:
        """Take one name whose deadline is reached, earliest first; None when none is."""
        if self.next_s() > now:
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._at_s[key]
        return key
