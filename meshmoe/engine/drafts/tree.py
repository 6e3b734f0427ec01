"""What is drafted for one request in one pass: a tree of tokens behind the pending one, and the sequences they are in.

Where a draft is unsure, its second choice is checked beside its first, and each may go on. A node is read by the
sequence of its branch; all nodes before the fork are read into that sequence, too (`Row.also`), so a branch's keys and
values stand together as if there were no other, and the branch that turns out right simply becomes the text. Checking
trees in one pass is of Miao et al. 2024, "SpecInfer" (arXiv 2305.09781), growing them where drafts are likely of Li et
al. 2024, "EAGLE-2" (arXiv 2406.16858); there a mask in the attention does what forks do here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from meshmoe.engine.lean.batch import Row
from meshmoe.engine.lean.blocks import Sequence as LeanSequence
from meshmoe.engine.request import GenerationStats

PENDING = -1
"""Number of the tree's root, the token that was written last and has not been read. Nodes count from 0."""


class Node(NamedTuple):
    """A drafted token.

    Attributes:
        parent: Number of the one before, or `PENDING`.
        path: The drafted tokens up to it, itself the last.
        sequence: Of its branch.
        alive: The chance that it is written.
    """

    parent: int
    path: tuple[int, ...]
    sequence: LeanSequence
    alive: float


class DraftTree:
    """See the module. Close it.

    Attributes:
        nodes: Each behind the one before it.
    """

    def __init__(self, sequence: LeanSequence) -> None:
        self.nodes: list[Node] = []
        self._trunk = sequence
        self._length = sequence.length
        self._forks: list[tuple[LeanSequence, int]] = []
        """With the number of the node behind which each parts."""
        self._children: dict[tuple[int, int], int] = {}
        self._continued: set[int] = set()

    def sequence(self, at: int) -> LeanSequence:
        """Where a node, or the pending token, is read."""
        return self._trunk if at == PENDING else self.nodes[at].sequence

    def path(self, at: int) -> tuple[int, ...]:
        """The drafted tokens up to a node."""
        return () if at == PENDING else self.nodes[at].path

    def alive(self, at: int) -> float:
        """The chance that a node is written."""
        return 1.0 if at == PENDING else self.nodes[at].alive

    def child(self, at: int, token: int) -> int | None:
        """The node of a token behind another, if there is one."""
        return self._children.get((at, token))

    def add(self, parent: int, token: int, alive: float) -> int:
        """Add a node; a second one behind the same parent forks where its sequence stands. Returns its number.

        Raises:
            NoBlocksError: There is no room for another branch.
        """
        sequence = self.sequence(parent)
        if parent in self._continued:
            sequence = sequence.fork()
            self._forks.append((sequence, parent))
        self._continued.add(parent)
        at = self._children[parent, token] = len(self.nodes)
        self.nodes.append(Node(parent, (*self.path(parent), token), sequence, alive))
        return at

    def rewind(self) -> None:
        """Forget what was read to draft it."""
        for sequence in (self._trunk, *(fork for fork, _ in self._forks)):
            sequence.truncate(min(self._length, sequence.length))

    def rows(self, pending: int, stats: GenerationStats) -> list[Row]:
        """What a pass has to read: the pending token, then the nodes."""
        also: dict[int, list[LeanSequence]] = {}
        for fork, at in self._forks:
            also.setdefault(PENDING, []).append(fork)
            while at != PENDING:
                also.setdefault(at, []).append(fork)
                at = self.nodes[at].parent
        tokens = [pending, *(node.path[-1] for node in self.nodes)]
        return [
            Row(self.sequence(at), token, stats, also=tuple(also.get(at, ())))
            for at, token in enumerate(tokens, start=PENDING)
        ]

    def take(self, at: int) -> None:
        """The text goes on with a node that was right, and forgets the others."""
        sequence = self.sequence(at)
        if sequence is not self._trunk:
            self._trunk.become(sequence)
        self._trunk.truncate(self._length + 1 + len(self.path(at)))

    def clear(self) -> None:
        """Draft nothing."""
        self.close()
        self.nodes.clear()
        self._children.clear()
        self._continued.clear()

    def close(self) -> None:
        """Give back what the branches took."""
        for fork, _ in self._forks:
            fork.close()
        self._forks.clear()


def chain(tree: DraftTree, tokens: Sequence[int]) -> None:
    """Draft tokens that stand in a row."""
    at = PENDING
    for token in tokens:
        at = tree.add(at, token, 1.0)
