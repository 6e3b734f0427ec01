"""One log line about bad traffic now and then, however much of it there is."""

from __future__ import annotations

import logging

import trio

PERIOD_S = 10.0


class Complaints:
    """Logs at most one warning a period; says how many were held back. Made on trio, of use on any one thread."""

    def __init__(self, logger: logging.Logger, period_s: float = PERIOD_S) -> None:
        self._logger = logger
        self._period_s = period_s
        self._quiet_until_s = float("-inf")
        self._held_back = 0
        self._clock = trio.lowlevel.current_clock()
        self.count = 0

    def note(self, line: str) -> None:
        """Count what is no reason to worry, such as a member of whose admission this node has not heard yet."""
        self.count += 1
        self._logger.debug("%s", line)

    def complain(self, line: str) -> None:
        """Count one piece of bad traffic, and log ``line`` if none was logged lately."""
        self.count += 1
        now_s = self._clock.current_time()
        if now_s < self._quiet_until_s:
            self._held_back += 1
            return
        more = f" ({self._held_back} more in the last while)" if self._held_back else ""
        self._logger.warning("%s%s", line, more)
        self._quiet_until_s = now_s + self._period_s
        self._held_back = 0
