"""One life of an operating system process: its own clock, timers, and the ways in which it can be late.

Machines see the process's monotonic clock, which starts anywhere and runs at its own rate. A paused process (SIGSTOP)
finds on resuming what came in meanwhile, and its timers late; a slow one handles everything that much later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from meshmoe.sim.clock import Clock

NEVER_S = float("inf")


class Process:
    """Runs callbacks in the process, as long as it lives."""

    def __init__(self, clock: Clock, rng: Random, rate: float) -> None:
        """Start.

        Args:
            clock: True time.
            rng: The world's chance.
            rate: Seconds of the process's clock in a true second.
        """
        self.alive = True
        self.paused = False
        self.lag_s = 0.0
        """How much later than it should the process handles everything."""
        self.rate = rate
        self._clock = clock
        self._rng = rng
        self._offset_s = rng.uniform(0.0, 1e5) - rate * clock.now
        self._backlog: deque[Callable[[], None]] = deque()

    @property
    def now_s(self) -> float:
        """The process's monotonic clock."""
        return self._offset_s + self.rate * self._clock.now

    def run(self, call: Callable[[], None]) -> None:
        """Handle something that has come in: now, late, or after the pause."""
        if self.lag_s > 0.0:
            self._clock.after(self.lag_s, lambda: self._run(call))
        else:
            self._run(call)

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call after a true delay (a disk's, say), in the process."""
        self._clock.after(delay_s, lambda: self.run(call))

    def at(self, local_s: float, call: Callable[[], None]) -> None:
        """Call when the process's clock has reached a time."""
        # A microsecond late, so that rounding cannot make it early by a hair, again and again.
        self._clock.at((local_s - self._offset_s) / self.rate + 1e-6, lambda: self.run(call))

    def pause(self, duration_s: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        self.paused = True
        self._clock.after(duration_s, self.resume)

    def resume(self) -> None:
        """SIGCONT: what waits is handled, half of the time from a random place on: sockets and timers have no order."""
        if not self.alive or not self.paused:
            return
        self.paused = False
        backlog, self._backlog = self._backlog, deque()
        if self._rng.random() < 0.5:
            backlog.rotate(self._rng.randrange(len(backlog)) if backlog else 0)
        for call in backlog:
            self._run(call)

    def end(self) -> None:
        """SIGKILL, or the end by itself: nothing is handled any more."""
        self.alive = False
        self._backlog.clear()

    def _run(self, call: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self.paused:
            self._backlog.append(call)
        else:
            call()


class Alarm:
    """Ticks a machine at its deadlines, as `meshmoe.node.ticker` does; too early at times, which must not matter."""

    def __init__(self, process: Process, next_deadline: Callable[[], float], tick: Callable[[], None]) -> None:
        self._process = process
        self._next_deadline = next_deadline
        self._tick = tick
        self._at_s = NEVER_S

    def set(self) -> None:
        """The deadline may have moved."""
        when_s = self._next_deadline()
        if when_s < self._at_s:
            self._at_s = when_s
            self._process.at(when_s, lambda: self._ring(when_s))

    def _ring(self, when_s: float) -> None:
        if when_s == self._at_s:
            self._at_s = NEVER_S
            self._tick()  # which sets the alarm again, at once or when the machine has handled it
