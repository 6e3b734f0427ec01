"""A bounded sample of a stream of steps in which old ones fade: what a live node keeps of its own routing.

A step's weight is ``exp(-decay * age)``. Priority sampling (Duffield, Lund & Thorup 2007) keeps the ``capacity`` steps
with the highest ``weight / u``, where ``u`` is uniform in (0, 1], and estimates each kept weight as the larger of
itself and the best priority that was dropped; every sum of weights is then estimated without bias, and while nothing
has been dropped it is exact. Forward decay (Cormode et al. 2009) makes it incremental: all weights fade alike, so the
order of priorities never changes, and ``decay * arrival - ln u`` is compared instead. Numbers stay small for ever.

A stream of ``r`` steps a second has a total weight of ``r / decay`` in the long run, hence `rates`.
"""

from __future__ import annotations

import heapq
import math
import random
from typing import Generic, TypeVar

import numpy as np

from meshmoe.placement.trace import Floats

Item = TypeVar("Item")

SEEN_S_MIN = 1.0
"""A stream counts as seen for so long at least: the first items of one say nothing of its rate."""


class Reservoir(Generic[Item]):
    """Keeps at most so many items, recent ones rather than old ones."""

    def __init__(self, capacity: int, half_life_s: float, rng: random.Random, now: float) -> None:
        """Start empty.

        Args:
            capacity: Items kept.
            half_life_s: An item's weight halves in this time.
            rng: Decides what is kept.
            now: Monotonic seconds; rates are those since the first item.
        """
        if capacity < 1 or half_life_s <= 0:
            raise ValueError("a reservoir needs room and a half-life")
        self._capacity, self._decay = capacity, math.log(2) / half_life_s
        self._rng, self._started = rng, now
        self._heap: list[tuple[float, int, float, Item]] = []
        """Log priority, number of arrival (for ties), arrival, item; the lowest priority first."""
        self._arrived = 0
        self._log_threshold = -math.inf

    def __len__(self) -> int:
        """Items kept."""
        return len(self._heap)

    def add(self, item: Item, now: float) -> None:
        """Take in an item; another one, or this one, is dropped when there is no room."""
        if not self._arrived:
            self._started = now  # what came before was no stream: rates would be too low for a half-life
        log_priority = self._decay * (now - self._started) - math.log(1.0 - self._rng.random())
        self._arrived += 1
        entry = (log_priority, self._arrived, now, item)
        if len(self._heap) < self._capacity:
            heapq.heappush(self._heap, entry)
            return
        dropped = heapq.heappushpop(self._heap, entry)
        self._log_threshold = max(self._log_threshold, dropped[0])

    def items(self) -> list[Item]:
        """What is kept, in order of arrival."""
        return [entry[3] for entry in sorted(self._heap, key=lambda entry: entry[1])]

    def arrivals(self) -> list[float]:
        """When each of `items` came."""
        return [entry[2] for entry in sorted(self._heap, key=lambda entry: entry[1])]

    def since(self, start_s: float) -> Reservoir[Item]:
        """A reservoir as if the stream had begun at ``start_s``: what came earlier is not in it."""
        later = Reservoir[Item](self._capacity, math.log(2) / self._decay, self._rng, start_s)
        shift = self._decay * (start_s - self._started)
        later._heap = [(entry[0] - shift, *entry[1:]) for entry in self._heap if entry[2] >= start_s]
        heapq.heapify(later._heap)
        later._arrived, later._log_threshold = self._arrived, self._log_threshold - shift
        return later

    def rates(self, now: float) -> Floats:
        """For each of `items`, how many such items come a second, as estimated now."""
        arrivals = np.array([entry[2] for entry in sorted(self._heap, key=lambda entry: entry[1])], dtype=np.float64)
        log_weights = np.maximum(self._decay * (arrivals - self._started), self._log_threshold)
        log_weights -= self._decay * (now - self._started)
        # A mesh that has run for less than a few half-lives has not seen all the weight it will see.
        seen = -math.expm1(-self._decay * max(now - self._started, SEEN_S_MIN))
        rates: Floats = np.exp(log_weights) * self._decay / seen
        return rates
