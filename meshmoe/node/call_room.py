"""How many expert calls of peers may wait here, and how much memory they may take."""

from __future__ import annotations

from collections import Counter

from meshmoe.core.ids import NodeId

WAITING_BYTES_MAX = 256 << 20
"""Hidden states of calls that wait or are computed; what comes beyond is answered with busy."""


class CallRoom:
    """Counts what has been let in; one peer gets half of the room at most and leaves the rest to others."""

    def __init__(self, calls_max: int, bytes_max: int = WAITING_BYTES_MAX) -> None:
        self._calls_max = calls_max
        self._bytes_max = bytes_max
        self._calls: Counter[NodeId] = Counter()
        self._bytes: Counter[NodeId] = Counter()

    def enter(self, peer: NodeId, size_bytes: int) -> bool:
        """Let a call of so many bytes in if there is room; returns whether there was."""
        held, held_of_peer = self._bytes.total(), self._bytes[peer]
        if self._calls.total() >= self._calls_max or 2 * self._calls[peer] >= self._calls_max:
            return False
        if held + size_bytes > self._bytes_max or (held_of_peer and 2 * held_of_peer > self._bytes_max):
            return False
        self._calls[peer] += 1
        self._bytes[peer] += size_bytes
        return True

    def leave(self, peer: NodeId, size_bytes: int) -> None:
        """A call that was let in has ended."""
        self._bytes[peer] -= size_bytes
        self._calls[peer] -= 1
        if not self._calls[peer]:
            del self._calls[peer], self._bytes[peer]
