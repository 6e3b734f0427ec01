"""When a node thinks about the plan again: rarely, for every thought keeps the mesh from rest, and may move weights.

A plan from few tokens is a plan for their accidents. On recorded routing of the bundled model (three nodes, a third
more places than experts) a plan from 64 tokens of each node needs 4.7 rounds for a token that it has not seen; from 256
tokens 4.3, from 512 4.1, from 1,024 4.0. So the first thought waits for a fair sample, and the next one for three times
as many. Then only other use is a reason: other shares of the experts, or another rate. While a change of use is under
way nothing is thought at all: a plan for the mixture of before and after would be a correction too many.
"""

from __future__ import annotations

import numpy as np

from meshmoe.placement.trace import Floats

TOKENS_FAIR = 256
"""Decode steps that are enough for a first plan."""

TOKENS_MIN = 64
"""Fewer than this say nothing yet."""

PATIENCE_S = 30.0
"""A node with `TOKENS_MIN` waits no longer for a fair sample: a mesh should not stand still for a slow one."""

GROWTH = 3
"""A sample so many times as large as that of the last thought is worth another one."""

DRIFT_MIN = 0.25
"""So is one of which the shares have changed by so much (0: the same, 1: nothing in common); noise is well below."""

RATE_FACTOR = 2.0
"""And one that comes so many times as fast, or as slowly: nodes' demands are weighed against each other."""


DRAFTS_LAST_S = 60.0
"""So is that drafts have begun to pay, or ceased to, once it has lasted so long: prices are others then."""


class Occasion:
    """One node's."""

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._tokens = 0
        self._demand: Floats | None = None
        self._drafts_pay, self._otherwise_s = False, np.inf

    def is_now(self, tokens: int, demand: Floats, now: float, *, changing: bool, drafts_pay: bool = False) -> bool:
        """Whether to think; if so, it is taken as done.

        Args:
            tokens: In the sample (`meshmoe.placement.live.demand.DemandKeeper.sample`).
            demand: ``[layers, experts]``, calls a second.
            now: Monotonic seconds.
            changing: Whether use seems to be changing just now.
            drafts_pay: Whether the node would place for drafts.
        """
        if not tokens:
            return False
        self._otherwise_s = min(self._otherwise_s, now) if drafts_pay != self._drafts_pay else np.inf
        self._first_s = now if self._first_s is None else self._first_s
        otherwise = now - self._otherwise_s >= DRAFTS_LAST_S and not changing and self._demand is not None
        if not otherwise and not self._is_worth_it(tokens, demand, now - self._first_s, changing):
            return False
        self._tokens, self._demand = tokens, demand
        self._drafts_pay, self._otherwise_s = drafts_pay, np.inf
        return True

    def is_near(self, now: float) -> bool:
        """Whether the first thought is still to come, and will soon."""
        return self._demand is None and self._first_s is not None and now - self._first_s < PATIENCE_S

    def use_changed(self) -> None:
        """What came before does not count any more: think as soon as possible."""
        self._tokens = 0

    def _is_worth_it(self, tokens: int, demand: Floats, waited_s: float, changing: bool) -> bool:
        if self._demand is None:
            return tokens >= (TOKENS_FAIR if waited_s < PATIENCE_S else TOKENS_MIN)
        if changing:
            return False
        if tokens >= GROWTH * self._tokens:
            return True
        before, after = float(self._demand.sum()), float(demand.sum())
        if not before or not after:
            return before != after
        faster = max(after / before, before / after) >= RATE_FACTOR
        return faster or drift(self._demand / before, demand / after) > DRIFT_MIN


def drift(before: Floats, after: Floats) -> float:
    """How different two demands are: 0 if they are the same, 1 if they have nothing in common."""
    larger = float(np.maximum(before, after).sum())
    return float(np.abs(before - after).sum()) / larger if larger else 0.0
