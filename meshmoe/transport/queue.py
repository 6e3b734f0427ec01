"""The bounded queue towards a peer: where back-pressure is made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from meshmoe.transport.limits import QueueLimit
from meshmoe.transport.turns import Turns
from meshmoe.wire.frames import Frame


class QueuedParcel(NamedTuple):
    """Frames with their total size."""

    frames: Sequence[Frame]
    size_bytes: int


class ParcelQueue:
    """First in, first out, bounded in parcels and bytes; writers may wait for room, readers look and pop."""

    def __init__(self, limit: QueueLimit) -> None:
        self._limit = limit
        self._parcels: deque[QueuedParcel] = deque()
        self._bytes = 0
        self.closed = False
        self._turns = Turns()
        # Writers that wait do so in the order in which they came: the lock is fair, and only its owner waits for room.
        self._turnstile = trio.Lock()
        self._writers_waiting = 0
        self._room: trio.Event | None = None
        self._watcher: Callable[[], None] | None = None

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher``, one only, after every change; it must be quick, and leave the queue alone."""
        self._watcher = watcher

    def __len__(self) -> int:
        return len(self._parcels)

    @property
    def contended(self) -> bool:
        """Whether a writer waits for room."""
        return self._writers_waiting > 0

    def has_room(self, size_bytes: int) -> bool:
        """Whether `offer` would take a parcel of this size."""
        if not self._parcels:
            return True
        return len(self._parcels) < self._limit.parcels_max and self._bytes + size_bytes <= self._limit.bytes_max

    def offer(self, parcel: QueuedParcel) -> bool:
        """Append if there is room; returns whether it was."""
        if self.closed:
            raise trio.ClosedResourceError("this queue is closed")
        if not self.has_room(parcel.size_bytes):
            return False
        self._parcels.append(parcel)
        self._bytes += parcel.size_bytes
        self._changed()
        return True

    def refusal(self) -> str:
        """Why `offer` said no, in words."""
        return f"takes no more: {len(self._parcels)} parcels, {self._bytes} bytes are waiting already"

    async def wait_for_room(self, size_bytes: int) -> None:
        """Wait for a turn among the writers and for room; what comes next must follow without a checkpoint.

        Raises:
            trio.ClosedResourceError: The queue is closed, or was closed while waiting.
        """
        await self._turns.take()
        if not self.contended and (self.closed or self.has_room(size_bytes)):
            return
        self._turns.waited()
        self._writers_waiting += 1
        try:
            async with self._turnstile:
                while not self.closed and not self.has_room(size_bytes):
                    self._room = trio.Event()
                    await self._room.wait()
        finally:
            self._writers_waiting -= 1

    def head(self) -> QueuedParcel:
        """The oldest parcel; the queue must not be empty."""
        return self._parcels[0]

    def pop(self) -> QueuedParcel:
        """Remove the oldest parcel and let a writer in."""
        parcel = self._parcels.popleft()
        self._bytes -= parcel.size_bytes
        self._changed()
        self._wake()
        return parcel

    def clear(self) -> int:
        """Drop everything; returns how many parcels that were."""
        dropped = len(self._parcels)
        self._parcels.clear()
        self._bytes = 0
        self._changed()
        self._wake()
        return dropped

    def seal(self) -> None:
        """Turn writers away, and those who wait; what is queued stays."""
        self.closed = True
        self._wake()

    def close(self) -> int:
        """Seal, and drop everything; returns how many parcels were dropped."""
        self.seal()
        return self.clear()

    def _changed(self) -> None:
        if self._watcher is not None:
            self._watcher()

    def _wake(self) -> None:
        if self._room is not None:
            self._room.set()
