"""Reading every unit of a model on a hub once, for its digest, and keeping only some.

A box that begins a mesh has to know the digest of every expert, also of those that it has no room for. So whoever has
no manifest of the model lets all of it pass by, which costs the download but not the disk. What is known is written
down, so that a later process goes on: a unit's digest when it has passed, and now and then the digest of what a large
one has brought to disk so far.

What is kept is a ``.part`` file of the store-to-be: once the manifest is made, it is checked against it like anything
that was received. So what a power failure did to it in the meantime shows.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from meshmoe.core.errors import CheckpointError
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.manifest import Manifest
from meshmoe.model.manifest_cache import make_manifest
from meshmoe.model.unit_files import write_whole
from meshmoe.model.unit_names import DIGEST_BYTES, UnitName, new_digest

CHUNK_BYTES = 8 << 20
WORKERS = 8
"""Ranges asked for at once: a range of 3 MiB (an expert's matrix) is mostly waiting for its first byte."""

MARK_BYTES = 64 << 20
"""How often the digest of what there is of a large unit is written down."""

_LINE = re.compile(r"(\S{1,64}) (\d{1,15}) ([0-9a-f]{40})\Z")

Advance = Callable[[int], None]
"""Told how many bytes have come, or were there, since it was told last; on any thread."""


class Journal:
    """Digests found so far: lines of path, bytes, and the digest of the unit's first so many bytes."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier process has written; a torn line counts as none."""
        self._lock = threading.Lock()
        self._marks: dict[str, dict[int, bytes]] = {}
        lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
        found = [match for match in map(_LINE.match, lines) if match]
        for match in found:
            self._marks.setdefault(match[1], {})[int(match[2])] = bytes.fromhex(match[3])
        write_whole(path, "".join(match[0] + "\n" for match in found).encode())
        self._file = path.open("a", encoding="utf-8")

    def marks(self, unit: UnitName) -> dict[int, bytes]:
        """Digests of a unit's first bytes, by how many bytes."""
        with self._lock:
            return dict(self._marks.get(unit.path, {}))

    def mark(self, unit: UnitName, done_bytes: int, digest: bytes) -> None:
        """Write down the digest of a unit's first ``done_bytes``."""
        with self._lock:
            self._marks.setdefault(unit.path, {})[done_bytes] = digest
            self._file.write(f"{unit.path} {done_bytes} {digest.hex()}\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def survey(
    remote: Checkpoint,
    journal: Path,
    directory: Path,
    kept: Collection[UnitName],
    advance: Advance,
    stop: threading.Event | None = None,
) -> Manifest:
    """Find the digests of all units, and keep some of them as ``.part`` files.

    Args:
        remote: The model on the hub.
        journal: Where digests are written down.
        directory: Of the store-to-be.
        kept: What to keep of trunk and experts.
        advance: Told of progress.
        stop: Set when it fails or is interrupted, so that nobody waits for more.

    Raises:
        CheckpointError: The hub sends nonsense, or the disk cannot be written.
        httpx2.HTTPError: The hub cannot be reached.
        OSError: The disk is full, or the network is gone.
    """
    book, stop = Journal(journal), stop or threading.Event()
    trunk = UnitName("trunk")
    experts = remote.layout.experts()
    units = [trunk, *map(UnitName.of_expert, experts)]

    def take(unit: UnitName) -> bytes:
        part = directory / f"{unit.path}.part" if unit in kept else None
        return _pass_by(remote, unit, part, book, advance, stop)

    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="meshmoe-survey")
    try:
        found = list(pool.map(take, units))
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        book.close()
    return make_manifest(remote, found[0], dict(zip(experts, found[1:], strict=True)))


def _pass_by(
    remote: Checkpoint, unit: UnitName, part: Path | None, book: Journal, advance: Advance, stop: threading.Event
) -> bytes:
    """The digest of a unit; leaves the unit itself in ``part`` if that is given."""
    size_bytes = remote.unit_bytes(unit)
    marks = book.marks(unit)
    there = part.stat().st_size if part is not None and part.is_file() else 0
    if size_bytes in marks and (part is None or there == size_bytes):
        advance(size_bytes)
        return marks[size_bytes]
    state, done, out = new_digest(), 0, -1
    try:
        if part is not None:
            part.parent.mkdir(parents=True, exist_ok=True)
            out = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            state, done = _take_up(out, {at: digest for at, digest in marks.items() if at <= there})
            os.ftruncate(out, done)
            advance(done)
        while done < size_bytes:
            if stop.is_set():
                raise CheckpointError("stopped: the same command goes on later")
            chunk = remote.read_unit(unit, done, CHUNK_BYTES)
            state.update(chunk)
            if out >= 0:
                _write(out, chunk, done)
            before, done = done, done + len(chunk)
            if out >= 0 and before // MARK_BYTES != done // MARK_BYTES and done < size_bytes:
                book.mark(unit, done, state.digest())
            advance(len(chunk))
    finally:
        if out >= 0:
            os.close(out)
    book.mark(unit, size_bytes, state.digest())
    return state.digest()


def _take_up(file: int, marks: dict[int, bytes]) -> tuple[hashlib.blake2b, int]:
    """The longest prefix of what is on disk that is as it was written down; nothing of it, if none is."""
    state, done, best, best_bytes = new_digest(), 0, new_digest(), 0
    for at in sorted(marks):
        while done < at:
            chunk = os.pread(file, min(CHUNK_BYTES, at - done), done)
            if not chunk:
                return best, best_bytes
            state.update(chunk)
            done += len(chunk)
        if state.digest() != marks[at]:
            break
        best, best_bytes = state.copy(), done
    assert best.digest_size == DIGEST_BYTES
    return best, best_bytes


def _write(file: int, chunk: memoryview, offset_bytes: int) -> None:
    done = 0
    while done < len(chunk):
        done += os.pwrite(file, chunk[done:], offset_bytes + done)
