"""Fairness for operations that mostly do not have to wait."""

from __future__ import annotations

import trio

PER_TURN = 16
"""Operations that may finish at once before the loop gets a turn: at some 10 us each, others wait 0.2 ms at most."""


class Turns:
    """Keeps a task in a hot loop from starving the others, without a loop turn for every operation.

    trio's custom is that every operation yields. A turn of the loop costs as much as the send or receive itself, so
    here one in `PER_TURN` yields; all of them notice cancellation. The yield comes *before* the operation: what has
    been taken from a queue can then not be lost to a cancellation.
    """

    def __init__(self, per_turn: int = PER_TURN) -> None:
        self._per_turn = per_turn
        self._left = per_turn

    async def take(self) -> None:
        """Call at the start of an operation; raises `trio.Cancelled` where that is due."""
        self._left -= 1
        if self._left > 0:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self.waited()
            await trio.lowlevel.checkpoint()

    def waited(self) -> None:
        """Call when the operation had to wait: the loop had its turn."""
        self._left = self._per_turn
