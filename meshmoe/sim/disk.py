"""What survives a crash of a node."""

from __future__ import annotations

from collections.abc import Mapping

from meshmoe.core.ids import ExpertId


class Disk:
    """The custody state file, and the prefixes of experts' units."""

    def __init__(self, serial: int, unit_bytes: Mapping[ExpertId, int], *, whole_model: bool) -> None:
        """A new disk.

        Args:
            serial: Tells this disk from every other one in its world.
            unit_bytes: Size of every expert's unit.
            whole_model: Whether the checkpoint is on it.
        """
        self.serial = serial
        self.state: bytes | None = None
        self.stored_bytes: dict[ExpertId, int] = dict(unit_bytes) if whole_model else {}
        self._unit_bytes = unit_bytes

    def has(self, expert: ExpertId) -> bool:
        """Whether the whole unit is here."""
        return self.stored_bytes.get(expert, 0) == self._unit_bytes[expert]

    def whole_units(self) -> frozenset[ExpertId]:
        """All experts whose whole unit is here."""
        return frozenset(expert for expert in self.stored_bytes if self.has(expert))

    def append(self, expert: ExpertId, offset: int, length: int) -> None:
        """Store a piece at the end of a unit."""
        assert self.stored_bytes.get(expert, 0) == offset, f"a piece of {expert} is stored out of order"
        self.stored_bytes[expert] = offset + length
        assert self.stored_bytes[expert] <= self._unit_bytes[expert]

    def delete(self, expert: ExpertId) -> None:
        """Remove a damaged unit."""
        self.stored_bytes.pop(expert, None)
