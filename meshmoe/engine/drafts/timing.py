"""How long a pass takes, by how many rows it reads; measured, and old measurements fade.

A pass through the mesh does not take so much a row: with more rows more layers need some absent expert, up to all of
them, and from then on another row is nearly free. So there is one mean for each number of rows. But passes vary, as the
layers that wait do, and of many means of few measurements the lowest is low by luck. So each leans on a line through
all of them, the more the less often it was measured.
"""

from __future__ import annotations

ROWS_MAX = 128
"""Numbers of rows told apart; more count as so many."""

FADING = 0.98
"""What is left of a mean's weight when the next measurement comes: about the last fifty count."""

LINE_WEIGHT = 12.0
"""Measurements that the line is worth."""

SLOPE_PRIOR = 0.06
"""Where all passes had equally many rows, a row more is taken to lengthen one by this share: low, so that trying is
worth while."""

STALL = 12.0
"""A pass that takes so many times the mean counts as no more: one stall of the box says little about the next pass."""


class PassTimes:
    """Mean duration of passes by rows."""

    def __init__(self) -> None:
        self._mean_s: dict[int, float] = {}
        self._weight: dict[int, float] = {}
        self._fit: tuple[float, float] | None = (0.0, 0.0)

    def note(self, rows: int, took_s: float) -> None:
        """A pass over so many rows took so long."""
        rows = min(rows, ROWS_MAX)
        weight = self._weight.get(rows, 0.0) * FADING
        mean_s = self._mean_s.get(rows, took_s)
        if weight > 2.0:
            took_s = min(took_s, STALL * mean_s)
        self._mean_s[rows] = (weight * mean_s + took_s) / (weight + 1.0)
        self._weight[rows] = weight + 1.0
        self._fit = None  # made when somebody asks: without drafts nobody does

    @property
    def _line(self) -> tuple[float, float]:
        if self._fit is None:
            self._fit = self._fitted()
        return self._fit

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return bool(self._mean_s)

    @property
    def row_s(self) -> float:
        """Seconds that a row more takes."""
        return self._line[1]

    def expected_s(self, rows: int) -> float:
        """How long a pass over so many rows should take; 0 if nothing was measured yet."""
        rows = min(rows, ROWS_MAX)
        base_s, row_s = self._line
        on_line_s = base_s + row_s * rows
        weight = self._weight.get(rows, 0.0)
        if not weight:
            return on_line_s
        return (weight * self._mean_s[rows] + LINE_WEIGHT * on_line_s) / (weight + LINE_WEIGHT)

    def _fitted(self) -> tuple[float, float]:
        """Seconds of a pass and of a row: least squares through the means, by their weights; it never falls."""
        total = sum(self._weight.values())
        rows = sum(w * r for r, w in self._weight.items()) / total
        took_s = sum(w * self._mean_s[r] for r, w in self._weight.items()) / total
        spread = sum(w * (r - rows) ** 2 for r, w in self._weight.items())
        row_s = took_s * SLOPE_PRIOR
        if spread:
            row_s = sum(w * (r - rows) * (self._mean_s[r] - took_s) for r, w in self._weight.items()) / spread
            row_s = max(0.0, row_s)
        return max(0.0, took_s - row_s * rows), row_s
