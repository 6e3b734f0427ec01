"""Gives a machine its time: sleeps until the machine's next deadline, which may move while it sleeps."""

from __future__ import annotations

from collections.abc import Callable

import trio


class Ticker:
    """One machine's clock."""

    def __init__(self) -> None:
        self._poked = trio.Event()

    def poke(self) -> None:
        """The deadline may have moved: look again."""
        self._poked.set()

    async def run(self, next_deadline: Callable[[], float], tick: Callable[[], None]) -> None:
        """Call ``tick`` at every deadline, until cancelled."""
        while True:
            self._poked = trio.Event()
            with trio.move_on_at(next_deadline()) as scope:
                await self._poked.wait()
            if scope.cancelled_caught:
                tick()
