"""How many requests run at once, and how many may wait for that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from meshmoe.core.errors import OverloadedError


class Admission:
    """A first-come, first-served door with a bounded queue.

    Attributes:
        active_max: Requests inside at most.
        queue_max: Requests that may wait.
    """

    def __init__(self, active_max: int, queue_max: int) -> None:
        self.active_max = active_max
        self.queue_max = queue_max
        self._places = trio.Semaphore(active_max)

    @property
    def active(self) -> int:
        """Requests inside."""
        return self.active_max - self._places.value

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self._places.statistics().tasks_waiting

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and keep it for the length of the block.

        Raises:
            OverloadedError: The queue is full.
        """
        if self._places.value == 0 and self.queued >= self.queue_max:
            raise OverloadedError(
                f"this node serves {self.active_max} requests and {self.queue_max} are waiting already; "
                "come back in a moment"
            )
        async with self._places:
            yield
