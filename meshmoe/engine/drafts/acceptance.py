"""How often drafts turn out right, by how far ahead they were made. Old experience fades."""

from __future__ import annotations

from collections.abc import Sequence

DEPTH_MAX = 16
"""Tokens drafted at most in one pass."""

FADING = 0.97
"""What is left of an experience's weight when the next one comes: about the last thirty count."""

PRIOR_WEIGHT = 3.0
"""Experiences that the prior is worth."""


class Acceptance:
    """One drafter's record in one request, or of a node.

    The chance of a draft being right is counted at each depth under the condition that all before it were, since only
    then is it looked at.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        """Begin with chances taken from elsewhere, ``prior[d]`` at depth ``d``; the last holds for all deeper ones."""
        self._prior = list(prior)
        self._tried = [0.0] * DEPTH_MAX
        self._right = [0.0] * DEPTH_MAX
        self.looked_at = 0
        self._chances: list[float] = []
        self._survival: list[float] = []
        """Empty where they have to be made anew: a pass asks for them several times."""

    def note(self, drafted: int, accepted: int) -> None:
        """A pass checked ``drafted`` tokens, of which the first ``accepted`` were right."""
        self.note_each([True] * accepted + [False] * (drafted > accepted))

    def note_each(self, right: Sequence[bool]) -> None:
        """At each depth a draft was looked at, the text being known up to there whoever had guessed it."""
        self.looked_at += len(right)
        self._chances, self._survival = [], []
        for depth, hit in enumerate(right):
            self._tried[depth] = self._tried[depth] * FADING + 1.0
            self._right[depth] = self._right[depth] * FADING + hit

    def chances(self) -> list[float]:
        """At each depth, the chance that a draft is right if all before it are."""
        if self._chances:
            return self._chances
        found, prior, last = self._chances, self._prior, len(self._prior) - 1
        easier = 1.0  # a text that is easier at one depth than the prior says will be so at the next
        for depth, (right, tried) in enumerate(zip(self._right, self._tried, strict=True)):
            expected = prior[depth if depth < last else last]
            chance = (right + PRIOR_WEIGHT * min(1.0, expected * easier)) / (tried + PRIOR_WEIGHT)
            easier = chance / max(expected, 1e-6)
            found.append(chance)
        return found

    def survival(self) -> list[float]:
        """The chance that the first ``d + 1`` drafts are all right, at each ``d``."""
        if not self._survival:
            alive, found = 1.0, self._survival
            for chance in self.chances():
                alive *= chance
                found.append(alive)
        return self._survival
