"""Where the bytes for experts are: a node never promises room that it does not have (invariant S3).

Every expert that occupies memory here, or will, has one entry. An expert that is to be dropped keeps its entry until
the runtime says that the memory is free.
"""

from __future__ import annotations

from meshmoe.core.ids import ExpertId


class Ledger:
    """Bytes taken by residents and by reservations, against the capacity."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._taken: dict[ExpertId, int] = {}
        self.taken_bytes = 0

    def __contains__(self, expert: ExpertId) -> bool:
        return expert in self._taken

    @property
    def free_bytes(self) -> int:
        """Room left; negative after the capacity was lowered below what is taken."""
        return self.capacity_bytes - self.taken_bytes

    def reserve(self, expert: ExpertId, size_bytes: int) -> bool:
        """Take room for an expert; returns whether there is any. One that has its room already is fine."""
        if expert in self._taken:
            return True
        if size_bytes > self.free_bytes:
            return False
        self._taken[expert] = size_bytes
        self.taken_bytes += size_bytes
        return True

    def free(self, expert: ExpertId) -> None:
        """Give an expert's room back; one that has none is fine."""
        self.taken_bytes -= self._taken.pop(expert, 0)
