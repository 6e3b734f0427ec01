"""What compiled code has to know of an emulated link: a `Link` table that `meshmoe.transport.link_model` computes with.

The model has times of its own; the table's are those of the monotonic clock. This is the edge between the two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from meshmoe.core.links import LinkShape
from meshmoe.transport.native_tables import LINK_WORDS, Link, Table

# As integers: an enumeration's members are slow to look up, and these are asked for with every parcel.
_SETTLED_S, _LAST_S = int(Link.SETTLED_S), int(Link.LAST_S)


class LinkTable:
    """One link's table, as attributes in the model's times."""

    def __init__(self, ahead_s: float = 0.0) -> None:
        """Make that of an idle link.

        Args:
            ahead_s: By how much the model's time is ahead of the monotonic clock.
        """
        self._table = Table(LINK_WORDS)
        self._words, self._reals = self._table.words, self._table.reals
        self._ahead_s = ahead_s
        self.address = self._table.address
        self.last_s = -math.inf

    @property
    def settled_s(self) -> float:
        """See `Link.SETTLED_S`."""
        return self._reals[_SETTLED_S] + self._ahead_s

    @settled_s.setter
    def settled_s(self, time_s: float) -> None:
        self._reals[_SETTLED_S] = time_s - self._ahead_s

    @property
    def last_s(self) -> float:
        """See `Link.LAST_S`."""
        return self._reals[_LAST_S] + self._ahead_s

    @last_s.setter
    def last_s(self, time_s: float) -> None:
        self._reals[_LAST_S] = time_s - self._ahead_s

    @property
    def life(self) -> int:
        """See `Link.LIFE`."""
        return self._words[Link.LIFE]

    @life.setter
    def life(self, life: int) -> None:
        self._words[Link.LIFE] = life

    @property
    def dropped(self) -> int:
        """See `Link.DROPPED`."""
        return self._words[Link.DROPPED]

    def mark(self, *, is_open: bool) -> None:
        """Say whether a parcel may pass alone."""
        self._words[Link.OPEN] = is_open

    def shaped(self, shape: LinkShape) -> None:
        """Say how the link is."""
        self._reals[Link.DELAY_S] = shape.rtt_s / 2
        self._reals[Link.JITTER_S] = shape.jitter_s
        self._reals[Link.RATE] = shape.rate_bytes_per_s


def ahead_s(current_time: Callable[[], float]) -> float:
    """By how much a clock is ahead of the monotonic one: of a few looks the one that took least."""
    best_s, found_s = math.inf, 0.0
    for _ in range(5):
        before_s, there_s, after_s = time.perf_counter(), current_time(), time.perf_counter()
        if after_s - before_s < best_s:
            best_s, found_s = after_s - before_s, there_s - (before_s + after_s) / 2
    return found_s
