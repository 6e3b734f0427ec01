"""Filling a partial store as a node does, from any source."""

from __future__ import annotations

from collections.abc import Iterable

from meshmoe.model.source import WeightSource
from meshmoe.model.store import PartialStore
from meshmoe.model.unit_names import UnitName


def receive(source: WeightSource, store: PartialStore, unit: UnitName, chunk_bytes: int = 10_000) -> None:
    """Carry one unit over, from wherever the store stands."""
    offset_bytes, size_bytes = store.begin(unit), source.unit_bytes(unit)
    while offset_bytes < size_bytes:
        chunk = source.read_unit(unit, offset_bytes, chunk_bytes)
        store.append(unit, offset_bytes, chunk)
        offset_bytes += len(chunk)
    store.finish(unit)


def fill(source: WeightSource, store: PartialStore, experts: Iterable[UnitName] | None = None) -> None:
    """Carry over small files, trunk, and the given experts; all experts if none are given."""
    for unit in store.missing():
        receive(source, store, unit)
    chosen = [unit for unit in store.manifest.units() if unit.kind == "expert"] if experts is None else experts
    for unit in chosen:
        receive(source, store, unit)
