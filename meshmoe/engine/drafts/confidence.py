"""How sure a local draft is, and when to stop drafting.

The probability that the drafting model gives a token tells a lot about whether the full model would write it: on the
bundled model with 40 % of the experts, 26 % of its first choices below 0.1 were right and 98 % of those above 0.9. Its
second and third choices are right less often than first ones of their probability. Whether what stood in the text says
the same tells more. So while `length` says whether to draft at all, each draft goes on for as long as it is sure enough
of itself: a token is checked if the chance that it is written is worth more than its row, and drafting goes on if the
next one promises to.
"""

from __future__ import annotations

from bisect import bisect
from enum import IntEnum
from typing import NamedTuple

WIDTH = 3
"""Choices of a draft that are looked at: the first finishers of its race."""

LOOKED_UP = WIDTH
"""Rank of a token that is none of them, but stood in the text."""

EDGES = (0.01, 0.02, 0.04, 0.07, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Between bins of probabilities."""

FADING = 0.995
"""What is left of an experience's weight when the next one of its bin comes: about the last two hundred count."""

PRIOR_WEIGHT = 6.0
"""Experiences that the prior is worth."""


class Text(IntEnum):
    """What the text looked up says of a token."""

    SILENT = 0
    """Nothing: the like stood nowhere."""
    SAME = 1
    OTHER = 2
    SURELY_SAME = 3
    """The same, after a long context."""
    SURELY_OTHER = 4


_PRIORS: dict[Text, tuple[tuple[float, float], ...]] = {
    Text.SILENT: ((0.15, 1.0), (0.01, 1.0), (0.01, 0.6), (0.01, 0.5)),
    Text.SAME: ((0.85, 1.0), (0.5, 1.0), (0.4, 1.0), (0.35, 0.8)),
    Text.OTHER: ((0.05, 0.9), (0.0, 0.3), (0.0, 0.3), (0.0, 0.3)),
    Text.SURELY_SAME: ((0.93, 1.0), (0.65, 1.0), (0.6, 1.0), (0.45, 0.9)),
    Text.SURELY_OTHER: ((0.02, 0.5), (0.0, 0.2), (0.0, 0.1), (0.0, 0.1)),
}
"""Chances before anything was seen, by rank: of a token without probability, and of one that is certain. Roughly those
of the bundled model and of edge-28m, with 40 and 50 % of the experts (docs/decisions/draft-trees.md)."""


class Guess(NamedTuple):
    """A token that may come next.

    Attributes:
        token: Its id.
        sure: The probability that the drafting model gives it; None where nobody asked.
        rank: Its place in the draft's race, from 0; or `LOOKED_UP`.
        text: What the text says of it.
    """

    token: int
    sure: float | None = None
    rank: int = 0
    text: Text = Text.SILENT


class Confidence:
    """A node's experience: how often drafts of each probability, rank and support were right."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Text, int, int], tuple[float, float]] = {}
        """Weight of what was looked at, and of what of it was right."""

    def note(self, guess: Guess, right: bool) -> None:
        """A draft was looked at, all before it being right."""
        if guess.sure is not None:
            which = _bin(guess, guess.sure)
            tried, of_it = self._seen.get(which, (0.0, 0.0))
            self._seen[which] = tried * FADING + 1.0, of_it * FADING + right

    def chance(self, guess: Guess) -> float:
        """That a draft is right if all before it are; 1 where nobody asked."""
        if guess.sure is None:
            return 1.0
        tried, right = self._seen.get(_bin(guess, guess.sure), (0.0, 0.0))
        least, most = _PRIORS[guess.text][guess.rank]
        prior = least + (most - least) * guess.sure
        return (right + PRIOR_WEIGHT * prior) / (tried + PRIOR_WEIGHT)


class Bar(NamedTuple):
    """What a token more must be worth, in tokens, when time is worth so many tokens a second.

    Attributes:
        checked: To be checked once it was drafted, at least: the time that computing a row takes.
        drafted: To be drafted: the time of a row of the pass, and that of drafting it.
        rate: Tokens a second.
    """

    checked: float
    drafted: float
    rate: float = 0.0


NO_BAR = Bar(0.0, 0.0)
"""Whatever is drafted is checked, up to the length that was asked for."""


def _bin(guess: Guess, sure: float) -> tuple[Text, int, int]:
    return guess.text, guess.rank, bisect(EDGES, sure)
