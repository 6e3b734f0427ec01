"""What is drafted for one request in one pass: a tree of tokens behind the pending one, and the sequences they are in.

Where a draft is unsure, its second choice is checked beside its first, and each may go on. A node is read by the
sequence of its branch; all nodes before the fork are read into that sequence, too (`Row.also`), so a branch's keys and
values stand together as if there were no other, and the branch that turns out right simply becomes the text. Checking
trees in one pass is of Miao et al. 2024, "SpecInfer" (arXiv 2305.09781), growing them where drafts are likely of Li et
al. 2024, "EAGLE-2" (arXiv 2406.16858); there a mask in the attention does what forks do here.
"""

from __future__ import annotations

from typing import TypeAlias

from meshmoe.engine.lean.blocks import Sequence as LeanSequence
from meshmoe.engine.lean.row import Row
from meshmoe.engine.request import GenerationStats

Path: TypeAlias = tuple[int, ...]
"""A node's drafted tokens, itself the last; it names the node."""

PENDING: Path = ()
"""The root: the token that was written last and has not been read."""


class DraftTree:
    """See the module. Close it.

    Attributes:
        nodes: The drafted tokens, each behind the one before it.
    """

    def __init__(self, sequence: LeanSequence) -> None:
        self.nodes: list[Path] = []
        self._length = sequence.length
        self._trunk = sequence
        self._sequences: dict[Path, LeanSequence] = {PENDING: sequence}
        self._forks: list[tuple[LeanSequence, Path]] = []
        """With the node behind which each parts."""
        self._continued: set[Path] = set()

    def __contains__(self, node: Path) -> bool:
        return node in self._sequences

    def sequence(self, node: Path) -> LeanSequence:
        """Where a node, or the pending token, is read."""
        return self._sequences[node]

    def add(self, node: Path) -> None:
        """Add a node; a second one behind the same one forks where that one's sequence stands.

        Raises:
            NoBlocksError: There is no room for another branch.
        """
        parent = node[:-1]
        sequence = self._sequences[parent]
        if parent in self._continued:
            sequence = sequence.fork()
            self._forks.append((sequence, parent))
        self._continued.add(parent)
        self._sequences[node] = sequence
        self.nodes.append(node)

    def rows(self, pending: int, stats: GenerationStats) -> list[Row]:
        """What a pass has to read: the pending token, then the nodes."""
        also: dict[Path, list[LeanSequence]] = {}
        for fork, parent in self._forks:
            for depth in range(len(parent) + 1):
                also.setdefault(parent[:depth], []).append(fork)
        return [
            Row(self._sequences[node], node[-1] if node else pending, stats, also=tuple(also.get(node, ())))
            for node in (PENDING, *self.nodes)
        ]

    def take(self, node: Path) -> None:
        """The text goes on with a node that was right, and forgets the others."""
        sequence = self._sequences[node]
        if sequence is not self._trunk:
            self._trunk.become(sequence)
        self._trunk.truncate(self._length + 1 + len(node))

    def clear(self) -> None:
        """Draft nothing, and have read nothing of it."""
        self.close()
        self._trunk.truncate(min(self._length, self._trunk.length))
        self.nodes.clear()
        self._continued.clear()
        self._sequences = {PENDING: self._trunk}

    def close(self) -> None:
        """Give back what the branches took."""
        for fork, _ in self._forks:
            fork.close()
        self._forks.clear()
