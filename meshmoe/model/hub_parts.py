"""Fetching the trunk and some experts of a model from a hub, into a store.

The store is the one that a node without the model's files fills from its peers: units, checked by their digests. What
differs is where the bytes come from. Headers first, so that it is known where each expert lies; then, if nobody has
given a manifest, one pass over all weights for the digests (`meshmoe.model.hub_survey`); then what is wanted.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshmoe.core.errors import CheckpointError, WireError
from meshmoe.core.ids import ExpertId
from meshmoe.core.units import format_size
from meshmoe.model.architecture import Architecture
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.config_file import load_config
from meshmoe.model.hub import INDEX, SPARE_BYTES, HubModel, fetch_one, in_words
from meshmoe.model.hub_ranges import HubTensors, RangeReader, fetch_header
from meshmoe.model.hub_survey import CHUNK_BYTES, WORKERS, survey
from meshmoe.model.layout import Layout
from meshmoe.model.manifest import Manifest, check_layout
from meshmoe.model.store import PartialStore
from meshmoe.model.unit_names import MODEL_FILES, UnitName

Progress = Callable[[str, int, int], None]
"""Told what is being done, bytes done, and bytes in all; on any thread."""


@dataclass(frozen=True)
class Parts:
    """What was asked for, once the headers are known.

    Attributes:
        remote: The model on the hub.
        wanted: The experts to fetch.
        stop: Ends all reading from the hub once it is set.
    """

    remote: Checkpoint
    wanted: frozenset[ExpertId]
    stop: threading.Event

    @property
    def wanted_bytes(self) -> int:
        """Of trunk and wanted experts."""
        return self.remote.trunk_bytes + sum(map(self.remote.expert_bytes, self.wanted))

    @property
    def total_bytes(self) -> int:
        """Of the whole model."""
        return self.remote.trunk_bytes + sum(map(self.remote.expert_bytes, self.remote.experts()))


def work_dir(directory: Path, commit: str) -> Path:
    """Where headers and notes lie while a model is being fetched into ``directory``."""
    return directory / f".hub-{commit[:16]}"


def look_inside(model: HubModel, work: Path, choose: Callable[[Layout], Collection[ExpertId]]) -> Parts:
    """Fetch small files and the weights' headers.

    Args:
        model: What `look_up` found; it has put ``config.json`` and the index into ``work``.
        work: Of this model.
        choose: Which experts to fetch.

    Raises:
        CheckpointError: It is not a usable checkpoint, or the hub cannot be reached.
    """
    stop = threading.Event()
    reader = RangeReader(model.name, model.commit, stop)
    shards = []
    with in_words(model.name):
        for file in model.files:
            if file.name.endswith(".safetensors"):
                shards.append(file.name)
            elif not (work / file.name).is_file() and (file.name in MODEL_FILES or file.name == INDEX):
                fetch_one(model.name, model.commit, file.name, work)
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda shard: fetch_header(reader, shard, work), shards))
    remote = Checkpoint(work, Architecture(load_config(work), model.name), HubTensors(work, reader))
    return Parts(remote, frozenset(choose(remote.layout)), stop)


def fetch_parts(
    model: HubModel, parts: Parts, directory: Path, manifest: Manifest | None, progress: Progress
) -> PartialStore:
    """Fetch small files, the trunk and the wanted experts, each checked by its digest.

    Args:
        model: What `look_up` found.
        parts: What `look_inside` found.
        directory: Of the store.
        manifest: Of the model; None to find the digests by reading all of it once.
        progress: Told how far it is.

    Raises:
        CheckpointError: The disk is too small, the hub cannot be reached, or what came is not what the manifest says.
        CapacityError: The disk is full.
    """
    remote = parts.remote
    with in_words(model.name):
        if manifest is None:
            _require_room(model.name, directory, parts.wanted_bytes - _there_bytes(directory))
            manifest = _survey(remote, parts, directory, progress)
            _forget_unwanted(directory, parts.wanted)
        store = PartialStore(directory, manifest)
        try:
            check_layout(manifest, remote.layout, model.name)
            _fill(model.name, parts, store, progress)
        finally:
            store.close()
    shutil.rmtree(remote.directory, ignore_errors=True)
    return store


def _survey(remote: Checkpoint, parts: Parts, directory: Path, progress: Progress) -> Manifest:
    kept = {UnitName("trunk"), *map(UnitName.of_expert, parts.wanted)}
    with _summed("reading all weights once for their digests", parts.total_bytes, progress) as advance:
        return survey(remote, remote.directory / "digests", directory, kept, advance, parts.stop)


def _forget_unwanted(directory: Path, wanted: Collection[ExpertId]) -> None:
    """Delete what an earlier try, which wanted other experts, has kept unfinished."""
    kept = {f"{UnitName.of_expert(expert).path}.part" for expert in wanted}
    for path in directory.glob("experts/*.part"):
        if f"experts/{path.name}" not in kept:
            path.unlink()


def _fill(name: str, parts: Parts, store: PartialStore, progress: Progress) -> None:
    remote, manifest = parts.remote, store.manifest
    units = [*store.missing(), *(UnitName.of_expert(e) for e in sorted(parts.wanted - store.stored_experts()))]
    for unit in units:
        entry = manifest.unit_entry(unit)
        if entry is None or not remote.has_unit(unit) or entry[0] != remote.unit_bytes(unit):
            raise CheckpointError(
                f"{name} has another {unit.name or unit} than the manifest says: give the --revision that it is of"
            )
    total_bytes = sum(remote.unit_bytes(unit) for unit in units)
    _require_room(name, store.directory, total_bytes - _there_bytes(store.directory))
    with _summed("fetching", total_bytes, progress) as advance:

        def receive(unit: UnitName) -> None:
            done, size_bytes = store.begin(unit), remote.unit_bytes(unit)
            advance(done)
            while done < size_bytes:
                if parts.stop.is_set():
                    return
                chunk = remote.read_unit(unit, done, CHUNK_BYTES)
                store.append(unit, done, chunk)
                done += len(chunk)
                advance(len(chunk))
            try:
                store.finish(unit)
            except WireError as error:
                raise CheckpointError(
                    f"{name}: {unit.name or unit} is not what the manifest says, and was deleted: the same command "
                    "fetches it again; if that does not help, the manifest is of another --revision"
                ) from error

        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="meshmoe-fetch")
        try:
            list(pool.map(receive, units))
        except BaseException:
            parts.stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _summed(what: str, total_bytes: int, progress: Progress) -> Iterator[Callable[[int], None]]:
    """Adds up what the workers tell."""
    lock, done_bytes = threading.Lock(), 0

    def advance(more_bytes: int) -> None:
        nonlocal done_bytes
        with lock:
            done_bytes += more_bytes
            progress(what, done_bytes, total_bytes)

    yield advance


def _there_bytes(directory: Path) -> int:
    """What unfinished units already take."""
    parts = [*directory.glob("*.part"), *directory.glob("experts/*.part")]
    return sum(path.stat().st_size for path in parts)


def _require_room(name: str, directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes + SPARE_BYTES > free_bytes:
        raise CheckpointError(
            f"{name}: what is wanted needs {format_size(max(0, needed_bytes))} more, the disk of {directory} has "
            f"{format_size(free_bytes)} free: give another place with --to, or want less"
        )
