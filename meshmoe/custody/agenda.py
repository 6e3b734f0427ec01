"""Which experts must be thought about, now and later.

Thinking about an expert (`Custodian.review`) is idempotent, so being on the agenda too often costs time and nothing
else.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from meshmoe.core.ids import ExpertId


class Agenda:
    """Experts due now, in the order in which they came up, and experts due at a time."""

    def __init__(self) -> None:
        self._now: dict[ExpertId, None] = {}
        self._later: list[tuple[float, ExpertId]] = []
        self._earliest_s: dict[ExpertId, float] = {}

    def add(self, experts: Iterable[ExpertId]) -> None:
        """Think about these while the present event is handled."""
        self._now.update(dict.fromkeys(experts))

    def at(self, expert: ExpertId, when_s: float) -> None:
        """Think about this one then; if it has an earlier date, that stands."""
        if when_s < self._earliest_s.get(expert, float("inf")):
            self._earliest_s[expert] = when_s
            heapq.heappush(self._later, (when_s, expert))

    def due(self, now_s: float) -> None:
        """Move what is due by now to the experts due now."""
        while self._later and self._later[0][0] <= now_s:
            when_s, expert = heapq.heappop(self._later)
            if self._earliest_s.get(expert) == when_s:
                del self._earliest_s[expert]
                self._now[expert] = None

    def take(self) -> list[ExpertId]:
        """The experts due now; they are off the agenda then."""
        experts = list(self._now)
        self._now.clear()
        return experts

    def next_s(self) -> float:
        """When something falls due; infinity if nothing ever does."""
        if self._now:
            return 0.0
        while self._later and self._earliest_s.get(self._later[0][1]) != self._later[0][0]:
            heapq.heappop(self._later)  # an earlier date took its place
        return self._later[0][0] if self._later else float("inf")
