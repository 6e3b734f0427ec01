"""Computing a checkpoint's manifest, which reads every byte of it, and remembering the result.

The memory is a small file in a cache directory. It is believed as long as path, size and modification time of every
file of the checkpoint are what they were; whoever changes weights and keeps all three deceives himself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from meshmoe.core.errors import CheckpointError, WireError
from meshmoe.core.ids import ExpertId
from meshmoe.core.units import format_size
from meshmoe.model.layout import Layout
from meshmoe.model.manifest import (
    FILE_BYTES_MAX,
    MANIFEST_FORMAT,
    FileEntry,
    Manifest,
    TensorEntry,
    TrunkEntry,
    check_layout,
    decode_manifest,
    layer_entry,
)
from meshmoe.model.source import Progress, WeightSource
from meshmoe.model.unit_files import read_range
from meshmoe.model.unit_names import MODEL_FILES, digest_of, new_digest

_CHUNK_BYTES = 4 << 20
_WORKERS_MAX = 16
"""Threads that digest experts, where there are so many processors; each has one expert in memory."""


class _Remembered(msgspec.Struct, frozen=True, array_like=True):
    fingerprint: tuple[tuple[str, int, int], ...]
    digest: str
    manifest: bytes


def small_files(directory: Path) -> list[Path]:
    """The configuration and tokenizer files that a model directory has, in ascending order of names."""
    return sorted(path for path in directory.iterdir() if path.name in MODEL_FILES and path.is_file())


def fingerprint(paths: list[Path]) -> tuple[tuple[str, int, int], ...]:
    """Name, size in bytes and modification time in ns of each file.

    Raises:
        CheckpointError: One is gone.
    """
    try:
        stats = [(path.name, path.stat()) for path in paths]
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def recall(
    cache_dir: Path, directory: Path, prints: tuple[tuple[str, int, int], ...], layout: Layout
) -> Manifest | None:
    """Look up the manifest of a checkpoint; None if it is unknown, outdated, or unreadable for any reason."""
    try:
        remembered = msgspec.msgpack.decode(_cache_file(cache_dir, directory).read_bytes(), type=_Remembered)
        if remembered.fingerprint != prints:
            return None
        manifest = decode_manifest(remembered.manifest, remembered.digest)
        check_layout(manifest, layout, str(directory))
    except (OSError, msgspec.MsgspecError, WireError, CheckpointError):
        return None
    return manifest


def remember(cache_dir: Path, directory: Path, prints: tuple[tuple[str, int, int], ...], manifest: Manifest) -> None:
    """Keep a manifest for the next start. A cache that cannot be written costs only time, so that is not an error."""
    path = _cache_file(cache_dir, directory)
    partial = path.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):
        cache_dir.mkdir(parents=True, exist_ok=True)
        entry = _Remembered(prints, manifest.model_digest, manifest.encode())
        try:
            partial.write_bytes(msgspec.msgpack.encode(entry))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)  # a full disk leaves the beginning of it


def compute_manifest(source: WeightSource, progress: Progress | None = None) -> Manifest:
    """Digest a whole model.

    Args:
        source: Has the trunk and every expert.
        progress: Told the bytes done so far, on this thread.

    Raises:
        CheckpointError: A file cannot be read or is too large.
    """
    done_bytes = 0

    def advance(size_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += size_bytes
        if progress is not None:
            progress(done_bytes)

    layout = source.layout
    trunk_digest = _digest_trunk(source, advance)
    digests: dict[ExpertId, bytes] = {}

    def digest_expert(expert: ExpertId) -> bytes:
        return digest_of(source.read_expert_unit(expert))

    pool = ThreadPoolExecutor(min(_WORKERS_MAX, len(os.sched_getaffinity(0))), thread_name_prefix="meshmoe-digest")
    try:
        experts = layout.experts()
        for expert, digest in zip(experts, pool.map(digest_expert, experts), strict=True):
            digests[expert] = digest
            advance(layout.layers[expert.layer].expert_bytes)
    finally:
        pool.shutdown(cancel_futures=True)
    return make_manifest(source, trunk_digest, digests)


def make_manifest(source: WeightSource, trunk_digest: bytes, expert_digests: Mapping[ExpertId, bytes]) -> Manifest:
    """Describe a model whose weights' digests are known.

    Args:
        source: Of the model; only its small files are read.
        trunk_digest: Of the trunk's bytes.
        expert_digests: Of every expert's unit.

    Raises:
        CheckpointError: A small file cannot be read or is too large.
    """
    files = tuple(_file_entry(path) for path in small_files(source.directory))
    layout = source.layout
    trunk_tensors = tuple(TensorEntry(key, *source.trunk_spec(key)) for key in layout.trunk)
    entries = tuple(
        layer_entry(layer, b"".join(expert_digests[ExpertId(layer.ordinal, e)] for e in range(layer.n_experts)))
        for layer in layout.layers
    )
    trunk = TrunkEntry(trunk_digest, layout.trunk_bytes, trunk_tensors)
    return Manifest(MANIFEST_FORMAT, source.family, files, trunk, entries)


def _digest_trunk(source: WeightSource, advance: Progress) -> bytes:
    state = new_digest()
    for offset_bytes in range(0, source.trunk_bytes, _CHUNK_BYTES):
        chunk = source.read_trunk(offset_bytes, _CHUNK_BYTES)
        state.update(chunk)
        advance(len(chunk))
    return state.digest()


def _file_entry(path: Path) -> FileEntry:
    content = bytes(read_range(path, 0, FILE_BYTES_MAX + 1))
    if len(content) > FILE_BYTES_MAX:
        raise CheckpointError(f"{path} has more than the {format_size(FILE_BYTES_MAX)} that such a file may have")
    return FileEntry(path.name, len(content), digest_of(content))


def _cache_file(cache_dir: Path, directory: Path) -> Path:
    return cache_dir / f"{digest_of(os.fsencode(directory.resolve())).hex()}.msgpack"
