"""Waking up at a given time to some tens of microseconds.

trio sleeps in ``epoll_wait``, whose timeout is in whole milliseconds and rounded up: too coarse to emulate a link of
0.3 ms. Linux's timerfd is a file descriptor that becomes readable at a time given in nanoseconds, and a descriptor is
something that trio waits for precisely. Python has it from 3.13 on; before that ctypes reaches the same three calls of
libc. Elsewhere, and under a clock that tests move by hand, `trio.sleep_until` must do.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import time
from typing import Protocol

import trio
from trio.testing import MockClock

_NEVER_S = math.inf
_PR_SET_TIMERSLACK = 29


class PreciseTimer(Protocol):
    """An alarm clock for one task; others may move the alarm while it sleeps."""

    def set(self, deadline_s: float) -> None:
        """Ring at ``deadline_s`` (in trio's time) and no longer at the time set before; infinity means never."""
        ...

    async def wait(self) -> None:
        """Sleep until the alarm rings; may return early."""
        ...

    def close(self) -> None:
        """Release what the timer holds."""
        ...


def open_precise_timer() -> PreciseTimer:
    """The best timer there is for this system and clock; must be called inside trio."""
    if sys.platform == "linux" and not isinstance(trio.lowlevel.current_clock(), MockClock):
        try:
            return TimerFd()
        except OSError:
            pass  # A sandbox or an odd libc without timerfd.
    return SleepTimer()


def open_timer_fd() -> TimerFd | None:
    """A timer for a thread that waits for descriptors; None where there is none."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return TimerFd()
    return None


class SleepTimer:
    """The portable timer, as precise as trio's own."""

    def __init__(self) -> None:
        self._deadline_s = _NEVER_S
        self._scope: trio.CancelScope | None = None

    def set(self, deadline_s: float) -> None:
        """See `PreciseTimer.set`."""
        self._deadline_s = deadline_s
        if self._scope is not None:
            self._scope.deadline = deadline_s

    async def wait(self) -> None:
        """See `PreciseTimer.wait`."""
        with trio.CancelScope(deadline=self._deadline_s) as self._scope:
            try:
                await trio.sleep_forever()
            finally:
                self._scope = None

    def close(self) -> None:
        """Nothing to release."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC if sys.platform == "linux" else 0


class TimerFd:
    """Linux's timerfd, waited on as trio waits on sockets."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            create = self._libc.timerfd_create
        except AttributeError:
            raise OSError("this libc has no timerfd_create") from None
        self._fd: int = create(time.CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = _Itimerspec()

    def set(self, deadline_s: float) -> None:
        """See `PreciseTimer.set`."""
        self.set_in(deadline_s - trio.current_time() if deadline_s != _NEVER_S else _NEVER_S)

    def set_in(self, delay_s: float) -> None:
        """`set` for a time from now; on any thread."""
        nanoseconds = max(1, round(delay_s * 1e9)) if delay_s != _NEVER_S else 0  # which disarms
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(nanoseconds, 1_000_000_000)
        if self._libc.timerfd_settime(self._fd, 0, ctypes.byref(self._spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def fileno(self) -> int:
        """The descriptor, readable from the time that was set on."""
        return self._fd

    async def wait(self) -> None:
        """See `PreciseTimer.wait`."""
        await trio.lowlevel.wait_readable(self._fd)
        # It may have been set anew between ringing and reading.
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        """Close the descriptor; a waiting task gets `trio.ClosedResourceError`."""
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1


def sharpen_waits() -> None:
    """Let this thread's waits end on time, where the system can do that: Linux lets them be late by 50 us else."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)  # a nanosecond, which is the least
