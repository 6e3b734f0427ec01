"""What becomes of the pieces of a unit is told in the order in which they were asked for, as the node does it.

The network lets messages overtake each other, and custody takes only the next piece of a unit. In the node a piece that
has come waits until the outcome of those before it is known (`meshmoe.node.unit_intake`); without that, whole units
would stand still here until the deadline of a piece that came too early.
"""

from __future__ import annotations

from collections import deque

from meshmoe.core.ids import ExpertId
from meshmoe.custody import PieceArrived, RequestPiece


class PiecesInOrder:
    """Those of one life of a node."""

    def __init__(self) -> None:
        self._asked: dict[ExpertId, deque[int]] = {}
        """Offsets whose outcome is not told."""
        self._early: dict[tuple[ExpertId, int], PieceArrived] = {}

    def asked(self, request: RequestPiece) -> None:
        """A piece is asked for; if again, whatever was asked for after it is given up."""
        offsets = self._asked.setdefault(request.expert, deque())
        while offsets and offsets[-1] >= request.offset:
            self._early.pop((request.expert, offsets.pop()), None)
        offsets.append(request.offset)

    def arrived(self, piece: PieceArrived) -> list[PieceArrived]:
        """A piece has come; returns what can be told now."""
        expert = piece.expert
        offsets = self._asked.get(expert, ())
        if piece.offset not in offsets:
            return []  # a second time, or not wanted any more
        assert isinstance(offsets, deque)
        self._early[expert, piece.offset] = piece
        told = []
        while offsets and (expert, offsets[0]) in self._early:
            told.append(self._early.pop((expert, offsets.popleft())))
        return told
