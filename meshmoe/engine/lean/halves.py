"""Whether requests advance all together or in two halves that take turns: whatever writes more tokens, as measured.

In halves one half computes while the other waits for peers. But each half asks for nearly as many layers as all
together would, so there are almost twice as many calls, and peers answer each later. Halves win where links are long
and processors idle, all together wins where processors are busy: with emulated links of 1.2 ms and three nodes on two
cores it wrote 1.14 times as fast. A share of waiting does not tell the one case from the other, because one waits
for busy peers as well. So now and then the other way is tried.

A *window* is some steps in one way, by the same number of requests. A trial is a window in the other way, held against
the one just before. On a busy box rates are noisy, so only several trials won in a row change the way; the first one
lost ends them. All together comes first: calls saved are saved for everybody. Pure: no clock.
"""

from __future__ import annotations

WAITING_FROM = 0.25
"""Share of a step's time spent waiting for peers from which on halves can be worth anything."""

WINDOW_S = 0.5
"""Of a window at least."""

WINDOW_STEPS = 16
"""Of a window at least, of whatever size."""

TRY_EVERY = 16
"""Windows from one trial that was lost to the next: if the other way is a fifth slower, that costs one per cent."""

CUT_SHORT = 8
"""Windows until the next, where requests came or went in the middle of one: as they come and go, so would the next."""

BETTER_BY = 1.05
"""A trial is won by being so many times as fast."""

WINS = 3
"""Trials in a row."""


class Halves:
    """One scheduler's choice; belongs to the compute thread."""

    def __init__(self) -> None:
        self._waiting = 0.0
        self._favourite = False
        self._trying = False
        self._won = 0
        self._windows = TRY_EVERY - 1
        """In the favourite way, since the last trial that was lost."""
        self._rate = 0.0
        """Of the latest of them."""
        self._writers = 0
        self._began_s: float | None = None
        self._tokens = 0
        self._steps = 0

    @property
    def now(self) -> bool:
        """Whether to advance in halves."""
        return self.overlap and self._favourite != self._trying

    @property
    def overlap(self) -> bool:
        """Whether steps wait for peers so long that another should go on meanwhile."""
        return self._waiting > WAITING_FROM

    def waited(self, share: float) -> None:
        """Note for what share of its time a step waited for peers."""
        self._waiting += (share - self._waiting) / 8

    def wrote(self, tokens: int, writers: int, now_s: float) -> None:
        """Note a writing step that has ended.

        Args:
            tokens: That it wrote.
            writers: Requests that write, in this step or not.
            now_s: The time.
        """
        if writers != self._writers:
            self._writers, self._began_s = writers, None
            if self._trying:  # what it is held against was measured with other requests
                self._trying, self._windows = False, TRY_EVERY - CUT_SHORT
        if writers < 2 or not self.overlap or self._began_s is None:
            self._began_s, self._tokens, self._steps = now_s, 0, 0
            return
        self._tokens += tokens
        self._steps += 1
        took_s = now_s - self._began_s
        if took_s >= WINDOW_S and self._steps >= WINDOW_STEPS:
            self._end(self._tokens / took_s)
            self._began_s = None  # the step after is partly of the way before

    def _end(self, rate: float) -> None:
        if not self._trying:
            self._rate = rate
            self._windows += 1
            self._trying = self._windows >= TRY_EVERY
            return
        self._trying, self._windows = False, 0
        if rate <= BETTER_BY * self._rate:
            self._won = 0
            return
        self._won += 1
        if self._won == WINS:
            self._favourite, self._won = not self._favourite, 0
        else:
            self._windows = TRY_EVERY - 1
