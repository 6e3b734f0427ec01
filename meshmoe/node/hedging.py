"""Asking twice: a decode call that is late goes to a second holder too, and the first answer counts.

Every layer of every token waits for the slowest of its calls, so a small share of slow answers sets the pace ("The Tail
at Scale", Dean & Barroso 2013, who call this hedged requests). Late is what takes longer than nearly all calls to this
peer did. The extra calls are budgeted: when everything is slow, asking for everything twice would make it slower.
"""

from __future__ import annotations

SHARE_MAX = 0.05
"""Extra calls, at most, of decode calls."""

BURST_MAX = 4.0
"""Extra calls that may be saved up."""


class Hedging:
    """The budget, and what came of it."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.calls = 0
        """Second calls made."""
        self.won = 0
        """Those whose answer came first."""
        self._saved = 0.0

    def earn(self) -> None:
        """A decode call was made."""
        self._saved = min(BURST_MAX, self._saved + SHARE_MAX)

    def spend(self) -> bool:
        """Whether one more extra call may be made; it counts as made."""
        if not self.enabled or self._saved < 1.0:
            return False
        self._saved -= 1.0
        self.calls += 1
        return True
