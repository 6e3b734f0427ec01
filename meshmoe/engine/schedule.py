"""Which job runs next: strict classes, first come first served within a class, and a minimum share against starving.

A class that is passed over earns ``SHARE_MIN`` of the time that the slices of higher classes take meanwhile, and has
its turn when it has earned what its own last slice took. With one higher class always busy, a lower one so runs a
fifth of the time: one part for every four. Pure: no clock, no thread.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Generic, TypeVar

T = TypeVar("T")

SHARE_MIN = 0.25
"""What a class that waits earns of the time that higher classes use."""

SLICE_GUESS_S = 0.005
"""What a slice of a class is taken to cost before the first one has run."""


class Priority(IntEnum):
    """Classes of work, most urgent first."""

    PEER_DECODE = 0
    """Another node's token stands still until this is computed."""
    PEER_PREFILL = 1
    """Another node reads a prompt, and stands still until this is computed."""
    DECODE = 2
    """A person waits for this token."""
    PREFILL = 3
    """A prompt is being read."""


_CLASSES = len(Priority)


class RunQueue(Generic[T]):
    """Things that wait for their turn, in classes."""

    def __init__(self) -> None:
        self._queues: tuple[deque[T], ...] = tuple(deque() for _ in Priority)
        self._earned_s = [0.0 for _ in Priority]
        self._slice_s = [SLICE_GUESS_S for _ in Priority]

    def __bool__(self) -> bool:
        return any(self._queues)

    def more_urgent_than(self, priority: Priority) -> bool:
        """Whether something waits in a higher class."""
        for queue in self._queues[:priority]:  # noqa: SIM110 - a generator costs more than the question
            if queue:
                return True
        return False

    def push(self, priority: Priority, item: T) -> None:
        """Queue behind one's equals."""
        self._queues[priority].append(item)

    def push_front(self, priority: Priority, item: T) -> None:
        """Queue before one's equals: it was interrupted."""
        self._queues[priority].appendleft(item)

    def remove(self, priority: Priority, item: T) -> bool:
        """Take something out of the queue; returns whether it was there."""
        queue = self._queues[priority]
        if item not in queue:
            return False
        queue.remove(item)
        return True

    def pop(self) -> T | None:
        """Take what runs next; None when nothing waits."""
        chosen = -1
        for priority, queue in enumerate(self._queues):
            if queue:
                if chosen < 0:
                    chosen = priority
                elif self._earned_s[priority] >= self._slice_s[priority]:
                    chosen = priority
                    break
        if chosen < 0:
            return None
        self._earned_s[chosen] = 0.0
        return self._queues[chosen].popleft()

    def account(self, priority: Priority, took_s: float) -> None:
        """A slice of a class has run for ``took_s``: note it, and credit the lower classes that wait."""
        self._slice_s[priority] = took_s
        for lower in range(priority + 1, _CLASSES):
            if self._queues[lower]:
                self._earned_s[lower] += took_s * SHARE_MIN
