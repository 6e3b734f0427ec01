"""How long a piece of prompt may be: as many rows as take no longer than a step may, as measured.

What rows take is not in proportion to their number: a few rows read nearly as many weights as many do, and what comes
late in a long prompt attends to all before it. But pieces of about the right length say what a row takes in pieces of
that length, and so the next one comes nearer: where n rows take ``a + b * n``, dividing the time that a step may take
by the mean time of a row leads to the n that takes just so long. Beside writers pieces are short, and alone they are
long, so each kind has a mean of its own. Pure: no clock.
"""

from __future__ import annotations

from meshmoe.engine.lean.model import ROWS_MAX

ROWS_MIN = 8
"""Fewer are not worth a step: they would take as long."""

ROWS_FIRST_ALONE = 64
"""Rows of a piece alone before any was measured; beside writers it is `ROWS_MIN`."""

WEIGHT = 0.25
"""Of the last piece in the mean, if it was as long as it might have been."""

STALL = 4.0
"""A piece that takes so many times what was expected counts as no more: one stall of the box, or what a card prepares
for a first piece of its size, says little about the next."""


class PieceRows:
    """One scheduler's measure; belongs to the compute thread."""

    def __init__(self) -> None:
        self._row_s: dict[bool, float] = {}

    def within(self, seconds: float, beside: bool) -> int:
        """How many rows a piece may have.

        Args:
            seconds: That it may take.
            beside: Whether others write meanwhile.

        Returns:
            `ROWS_MIN` to `ROWS_MAX`.
        """
        row_s = self._row_s.get(beside)
        if row_s is None:
            return ROWS_MIN if beside else ROWS_FIRST_ALONE
        return max(ROWS_MIN, min(ROWS_MAX, int(seconds / row_s)))

    def took(self, rows: int, allowed: int, seconds: float, beside: bool) -> None:
        """Note a piece.

        Args:
            rows: That it had.
            allowed: That it might have had. A much shorter one says little of those that fill it.
            seconds: That this node computed for it.
            beside: As it was allowed.
        """
        row_s = max(seconds, 1e-9) / rows
        before = self._row_s.get(beside)
        if before is not None:
            change = min(row_s, STALL * before) - before
            self._row_s[beside] = before + WEIGHT * min(1.0, rows / allowed) * change
        elif 2 * rows >= allowed:
            self._row_s[beside] = row_s
