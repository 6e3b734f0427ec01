"""How long a pass takes, by how many rows it reads; measured, and old measurements fade.

What a node computes itself takes longer by the same time with every row: a line. Waiting for peers does not: with more
rows more layers need some absent expert, up to all of them, and from then on another row waits for nothing new. If a
row finds a layer complete with probability q, n rows find it so with q^n, and wait in 1 - q^n of the layers. So waiting
is fitted by ``base + rise * (1 - q**n)``, with the q of a few that fits best.

What changes changes all of them: when neighbours are busy, or experts have moved to where they are used, passes of any
number of rows take longer or shorter. Numbers of rows that are not in use would never learn that, and a node would go
on as it once was right to. So each measurement also moves the other means, by its ratio to the mean of its own number.

There is also one mean for each number of rows. But passes vary, and of many means of few measurements the lowest is low
by luck. So each leans on the curve through all of them, the more the less often it was measured.
"""

from __future__ import annotations

import numpy as np

ROWS_MAX = 128
"""Numbers of rows told apart; more count as so many."""

FADING = 0.98
"""What is left of a mean's weight when the next measurement comes: about the last fifty count."""

CURVE_WEIGHT = 12.0
"""Measurements that the curve is worth."""

SLOPE_PRIOR = 0.06
"""Where all passes had equally many rows, a row more is taken to lengthen one by this share: low, so that trying is
worth while."""

PACE = 0.02
"""By what share of the ratio of a measurement to its mean the other means move: as fast as its own, in the long run."""

STALL = 12.0
"""A pass that takes so many times the mean counts as no more: one stall of the box says little about the next pass."""

BENDS = (0.9, 0.8, 0.7, 0.6, 0.5)
"""What q may be, besides 1, a line."""

BEND_GAIN = 0.9
"""A lower q is taken if its error is less by this factor, as means of few measurements bend any curve."""

REFIT_MAX = 16
"""Measurements after which the curve is made anew, at most: that takes longer than a pass of a small model may."""

Curve = list[float]
"""Seconds by number of rows, 0 to `ROWS_MAX`. Lists, since numpy takes longer for a single value."""

_ROWS = np.arange(ROWS_MAX + 1, dtype=np.float64)
_RISES = [_ROWS, *((1.0 - q**_ROWS) / (1.0 - q) for q in BENDS)]


class PassTimes:
    """Mean duration of passes by rows."""

    def __init__(self, *, bent: bool = False) -> None:
        """Nothing was measured yet.

        Args:
            bent: Whether further rows may cost less and less; else they cost the same.
        """
        self._paced_s = [0.0] * (ROWS_MAX + 1)
        """Means, over the pace."""
        self._pace = 1.0
        self._weight = [0.0] * (ROWS_MAX + 1)
        self._rises = _RISES if bent else _RISES[:1]
        self._curve: Curve = [0.0] * (ROWS_MAX + 1)
        self._noted = self._fit_at = 0

    def note(self, rows: int, took_s: float) -> None:
        """A pass over so many rows took so long."""
        rows = min(rows, ROWS_MAX)
        weight = self._weight[rows] * FADING
        mean_s = self._pace * self._paced_s[rows] if weight else took_s
        if weight > 2.0 and mean_s > 0.0:
            took_s = min(took_s, STALL * mean_s)
            self._pace *= 1.0 + PACE * (took_s / mean_s - 1.0)
        self._paced_s[rows] = (weight * mean_s + took_s) / ((weight + 1.0) * self._pace)
        self._weight[rows] = weight + 1.0
        self._noted += 1

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self._noted > 0

    @property
    def curve(self) -> Curve:
        """Seconds by number of rows, smoothed over all numbers of rows, as of the last `settle`; it never falls."""
        if not self._fit_at:
            self.settle()
        return self._curve

    def settle(self) -> None:
        """Make the curve anew once enough has been measured since; not while anybody waits, as that takes 0.1 ms."""
        if self._noted > self._fit_at:
            self._curve = self._fitted()
            self._fit_at = self._noted + min(REFIT_MAX, self._noted // 8)

    def expected_s(self, rows: int) -> float:
        """How long a pass over so many rows should take; 0 if nothing was measured yet."""
        rows = min(rows, ROWS_MAX)
        return self.leaning_s(rows, self.curve[rows])

    def leaning_s(self, rows: int, smooth_s: float) -> float:
        """The mean of so many rows, at most `ROWS_MAX`, leaning on what is known of it from elsewhere."""
        weight = self._weight[rows]
        return (weight * self._pace * self._paced_s[rows] + CURVE_WEIGHT * smooth_s) / (weight + CURVE_WEIGHT)

    def _fitted(self) -> Curve:
        """Weighted least squares through the means."""
        weight = np.array(self._weight)
        at = np.flatnonzero(weight)
        weight, took_s = weight[at], np.array(self._paced_s)[at] * self._pace
        weight = weight / weight.sum()
        mean_s = float(weight @ took_s)
        best, least = mean_s * (1.0 + SLOPE_PRIOR * (_ROWS - at[0])), np.inf
        for rise in self._rises if len(at) > 1 else ():
            x = rise[at] - weight @ rise[at]
            spread = max(1e-12, float((weight * x) @ x))  # none where all are far out on a bend
            slope = max(0.0, float((weight * x) @ took_s) / spread)
            error = float(weight @ (took_s - mean_s - slope * x) ** 2)
            if error < BEND_GAIN * least:
                best, least = mean_s + slope * (rise - weight @ rise[at]), error
        curve: Curve = np.maximum(0.0, best).tolist()
        return curve
