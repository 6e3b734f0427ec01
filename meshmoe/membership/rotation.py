"""Whom to probe next: round robin over a shuffled list.

SWIM, section 4.3: probing in a random permutation, reshuffled after each round, bounds the time until a given node
probes a given member by ``2n - 1`` intervals, where independent random choice has no bound. Newcomers are put at a
random place of the current round, or the bound would not hold for them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from meshmoe.core.ids import NodeId


class Rotation:
    """The permutation and the place in it."""

    __slots__ = ("_names", "_place", "_rng")

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._names: list[NodeId] = []
        self._place = 0

    def __len__(self) -> int:
        return len(self._names)

    def add(self, node: NodeId) -> None:
        """Put a newcomer at a random place among those still to come in this round."""
        self._names.insert(self._rng.randint(self._place, len(self._names)), node)

    def remove(self, node: NodeId) -> None:
        """Take a member out, keeping everybody's turn."""
        index = self._names.index(node)
        del self._names[index]
        if index < self._place:
            self._place -= 1

    def next(self, eligible: Callable[[NodeId], bool]) -> NodeId | None:
        """The next member for which ``eligible`` holds; None when there is none."""
        for _ in range(2 * len(self._names)):  # the rest of this round and all of the next
            if self._place >= len(self._names):
                self._rng.shuffle(self._names)
                self._place = 0
            node = self._names[self._place]
            self._place += 1
            if eligible(node):
                return node
        return None
