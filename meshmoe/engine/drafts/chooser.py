"""Chooses how many tokens to draft in the next pass, and learns from each. One for a node: its links and its boxes are
what passes take time for.

Estimates that are never tried never get better, so now and then a pass goes another way than the best known one: with
no drafts, or with a few more. That costs at most one pass in `EXPLORE_EVERY`. Where many requests go together, a few at
a time are given more, in turns: all of them learn from it, and a pass with rows more for each takes far longer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from meshmoe.engine.drafts.confidence import Bar
from meshmoe.engine.drafts.length import Prospect, choose_lengths
from meshmoe.engine.drafts.timing import ROWS_MAX, PassTimes

EXPLORE_EVERY = 40

FIRST_PASSES = 3
"""Passes without drafts before anything is tried, so that there is something to compare with."""

EXPLORE_FROM_NONE_EVERY = 100

WIDER_OVER = 20.0
"""Passes over which the width of trees is remembered."""

EXPLORERS = 2
"""Requests that are given more, at once."""

STEP = 2
"""Tokens more than the best, when more are tried."""


class LengthChooser:
    """See above.

    Attributes:
        exploring: Of the requests that lengths were chosen for last, those whose were chosen to learn something.
    """

    def __init__(self) -> None:
        self._passes = PassTimes()
        self._local = PassTimes()
        self._waits = PassTimes(bent=True)
        self._drafts = PassTimes()
        self._pass_s: dict[int, float] = {}
        self._draft_s: dict[int, float] = {}
        """By rows, since the last measurement: choosing asks for the same ones again and again."""
        self._chosen = 0
        self._tries = 0
        self._wider = 1.0
        """Rows of passes with trees, over those that were planned."""
        self.exploring: Collection[int] = ()

    def note_pass(self, rows: int, took_s: float, waited_s: float) -> None:
        """A pass through the mesh over ``rows`` took ``took_s``, of which it ``waited_s`` for peers."""
        self._pass_s.clear()
        self._draft_s.clear()
        self._passes.note(rows, took_s)
        self._local.note(rows, max(0.0, took_s - waited_s))
        self._waits.note(rows, min(waited_s, took_s))
        for times in (self._local, self._waits, self._drafts):
            times.settle()

    def note_draft(self, rows: int, took_s: float) -> None:
        """A drafting pass over ``rows`` took so long."""
        self._draft_s.clear()
        self._drafts.note(rows, took_s)

    def pass_s(self, rows: int) -> float:
        """Seconds of a pass through the mesh."""
        rows = min(rows, ROWS_MAX)
        found = self._pass_s.get(rows)
        if found is None:
            smooth_s = self._local.curve[rows] + self._waits.curve[rows]
            found = self._pass_s[rows] = self._passes.leaning_s(rows, smooth_s)
        return found

    @property
    def row_s(self) -> float:
        """Seconds that a row more computes, and so takes at least."""
        return self._local.curve[2] - self._local.curve[1]

    def draft_s(self, rows: int) -> float:
        """Seconds of a drafting pass; until one was measured, what passes compute here."""
        found = self._draft_s.get(rows)
        if found is None:
            found = self._draft_s[rows] = (self._drafts if self._drafts.known else self._local).expected_s(rows)
        return found

    def bar(self, prospects: Sequence[Prospect], lengths: Sequence[int]) -> Bar:
        """What a token more must be worth, where drafts of these lengths are the best choice on average."""
        rows, drafting = len(prospects) + sum(lengths), [n for n, p in zip(lengths, prospects, strict=True) if p.costs]
        drafting_s = sum(self.draft_s(sum(n > d for n in drafting)) for d in range(max(drafting, default=0)))
        tokens = len(prospects) + sum(sum(p.survival[:n]) for p, n in zip(prospects, lengths, strict=True))
        rate = tokens / max(self.pass_s(rows) + drafting_s, 1e-9)
        together = max(1, sum(n > 0 for n in drafting))
        rows = min(ROWS_MAX, max(2, round(rows * self._wider)))
        computing_s, waiting_s = (times.curve[rows] - times.curve[rows - 1] for times in (self._local, self._waits))
        return Bar(rate * computing_s, rate * (computing_s + waiting_s + self.draft_s(together) / together), rate)

    def keep(self, chances: Sequence[float], fixed: int, rate: float) -> int:
        """How many of the drafts to check, the likeliest first: tokens expected, less what their time is worth.

        A row more costs less and less where most layers wait already, so the first that is not worth its own row need
        not be the last that is checked.

        Args:
            chances: That each is written, falling.
            fixed: Rows of the pass besides.
            rate: Tokens a second that time is worth.
        """
        most = max(0, min(len(chances), ROWS_MAX - fixed))
        local, waits = self._local.curve, self._waits.curve
        best, best_worth, tokens = 0, 0.0, 0.0
        none_s = local[min(fixed, ROWS_MAX)] + waits[min(fixed, ROWS_MAX)]
        for count in range(1, most + 1):
            tokens += chances[count - 1]
            worth = tokens - rate * (local[fixed + count] + waits[fixed + count] - none_s)
            if worth > best_worth:
                best, best_worth = count, worth
        return best

    def note_rows(self, planned: int, rows: int) -> None:
        """Trees had so many rows where chains were planned with fewer."""
        self._wider += (rows / planned - self._wider) / WIDER_OVER

    def lengths(self, prospects: Sequence[Prospect]) -> list[int]:
        """How many tokens to draft for each request of the next pass."""
        self._chosen += 1
        self.exploring = ()
        if self._chosen <= FIRST_PASSES:
            return [0] * len(prospects)
        best = choose_lengths(prospects, self.pass_s, self.draft_s, self.row_s)
        drafting = any(best)
        if self._chosen % (EXPLORE_EVERY if drafting else EXPLORE_FROM_NONE_EVERY):
            return best
        self._tries += 1
        if drafting and self._tries % 2:
            self.exploring = range(len(prospects))
            return [0] * len(prospects)
        step, turn = STEP if drafting else 1, self._tries // 2 * EXPLORERS
        self.exploring = {(turn + at) % len(prospects) for at in range(EXPLORERS)}
        for at in self.exploring:
            best[at] = min(best[at] + step, len(prospects[at].survival))
        return best
