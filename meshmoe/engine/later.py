"""Work that nobody waits for, kept until the compute thread has nothing better to do.

While a pass waits for peers, its thread would sleep. What need not be done before the next pass begins, such as
learning from the last one and telling its tokens, is done then, in the order in which it was put off. Between passes
such things take longer than they seem to, as each begins with cold caches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter


class Later:
    """See the module. Belongs to the compute thread; shared by all who compute there, which keeps the order."""

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._work)

    def postpone(self, work: Callable[[], None]) -> None:
        """Have something done later.

        Args:
            work: Some 100 us of it at most, as answers that come meanwhile wait for its end; must not raise.
        """
        self._work.append(work)

    def do_one(self) -> None:
        """Do what was postponed first."""
        self._work.popleft()()

    def do_for(self, time_s: float) -> None:
        """Do what was postponed, in order, and begin nothing more after so long."""
        until_s = perf_counter() + time_s
        while self._work and perf_counter() < until_s:
            self.do_one()

    def catch_up(self) -> None:
        """Do all of it now."""
        while self._work:
            self.do_one()
