"""Drafts from the text itself: what followed the last time that these tokens stood here.

Prompt lookup (Saxena 2023; Yang et al. 2023, "Inference with Reference"). It costs nothing, and wins where text repeats
itself: code, summaries, tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

CONTEXTS = (5, 3, 2)
"""Lengths of context looked for, longest first."""


class PromptLookup:
    """The n-grams of one text, each with the place where it ended last."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._ids: list[int] = []
        self._ends: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in CONTEXTS}
        for token in ids:
            self.push(token)

    @property
    def length(self) -> int:
        """Tokens known."""
        return len(self._ids)

    def push(self, token: int) -> None:
        """A token was written."""
        end = len(self._ids)
        # What ends here becomes findable only now, so that a suffix never finds itself.
        for n, ends in self._ends.items():
            if end >= n:
                ends[tuple(self._ids[end - n :])] = end
        self._ids.append(token)

    def draft(self, count: int) -> tuple[Sequence[int], int]:
        """What may come next, and how many of the last tokens stood there before.

        At most ``count`` tokens, fewer or none where nothing like it stood before.
        """
        for n in CONTEXTS:
            end = self._ends[n].get(tuple(self._ids[-n:])) if len(self._ids) >= n else None
            if end is not None:
                break
        else:
            return (), 0
        drafted: list[int] = []
        for place in range(end, end + count):
            # Past the end of the text the draft goes on with itself: a loop is drafted as a loop.
            written = len(self._ids)
            drafted.append(self._ids[place] if place < written else drafted[place - written])
        return drafted, n
