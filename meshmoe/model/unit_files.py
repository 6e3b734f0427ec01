"""Units on disk: received piece by piece into a ``.part`` file, checked, and only then given their name.

A file without ``.part`` is a whole unit whose digest was right when it was written. A ``.part`` file outlives the
process and is continued where it ends; what it holds is not trusted before the digest of the whole is right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from meshmoe.core.errors import CapacityError, CheckpointError, WireError
from meshmoe.core.units import format_size
from meshmoe.model.source import Progress
from meshmoe.model.tensors import aligned_buffer, bytes_of
from meshmoe.model.unit_names import UnitName, new_digest

_CHUNK_BYTES = 4 << 20


class IncomingUnit:
    """A unit that is being received. Its methods exclude each other, so they may come from different threads.

    Attributes:
        unit: Which one.
        received_bytes: How much of it the ``.part`` file holds.
    """

    def __init__(self, root: Path, unit: UnitName, size_bytes: int, digest: bytes) -> None:
        """Open the ``.part`` file, and take up what an earlier attempt left in it.

        Raises:
            CapacityError: The disk has no room for the rest.
            CheckpointError: The file cannot be opened or read.
        """
        self.unit = unit
        self._root, self._size_bytes, self._digest = root, size_bytes, digest
        self._final = root / unit.path
        self._part = self._final.with_name(self._final.name + ".part")
        self._lock = threading.Lock()
        self._state = new_digest()
        self.received_bytes = 0
        try:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            _raise_write_error(self._part, error, size_bytes)
        try:
            self._resume()
            missing_bytes = size_bytes - self.received_bytes
            free_bytes = shutil.disk_usage(root).free
            if free_bytes < missing_bytes:
                raise CapacityError(
                    f"{unit} needs {format_size(missing_bytes)} more in {root}, where {format_size(free_bytes)} "
                    "are free; make room or give another directory"
                )
        except BaseException:
            self._close()
            raise

    def append(self, offset_bytes: int, chunk: bytes | bytearray | memoryview) -> None:
        """Write the next bytes.

        Args:
            offset_bytes: Where they belong; must be ``received_bytes``.
            chunk: The bytes.

        Raises:
            WireError: They belong elsewhere, or are more than the unit has.
            CapacityError: The disk is full.
            CheckpointError: The file cannot be written.
        """
        data = memoryview(chunk).cast("B")
        with self._lock:
            if self.closed:
                raise WireError(f"{self.unit} is no longer being received")
            if offset_bytes != self.received_bytes:
                raise WireError(f"{self.unit}: got bytes from {offset_bytes} on, expected {self.received_bytes}")
            if offset_bytes + len(data) > self._size_bytes:
                raise WireError(f"{self.unit}: got more than its {self._size_bytes} bytes")
            done = 0
            try:
                while done < len(data):
                    done += os.pwrite(self._file, data[done:], offset_bytes + done)
            except OSError as error:
                _raise_write_error(self._part, error, self._size_bytes - offset_bytes)
            self._state.update(data)
            self.received_bytes += len(data)

    def finish(self) -> None:
        """Check the digest, make the file durable, and give it its name.

        Raises:
            WireError: Bytes are missing (they can still be sent), or the digest is wrong (the file is deleted).
            CapacityError: The disk is full.
            CheckpointError: The file cannot be written.
        """
        with self._lock:
            if self.closed or self.received_bytes != self._size_bytes:
                raise WireError(f"{self.unit}: got {self.received_bytes} of its {self._size_bytes} bytes")
            if self._state.digest() != self._digest:
                self._discard()
                raise WireError(f"{self.unit}: what was received does not have the right digest, and was thrown away")
            try:
                os.fsync(self._file)
                self._part.replace(self._final)
                sync_directory(self._final.parent)
            except OSError as error:
                _raise_write_error(self._part, error, 0)
            self._close()

    def discard(self) -> None:
        """Delete what was received."""
        with self._lock:
            self._discard()

    def close(self) -> None:
        """Close the ``.part`` file and keep it, to go on later."""
        with self._lock:
            self._close()

    @property
    def closed(self) -> bool:
        """Whether nothing more can be written: it is finished, discarded, or was closed."""
        return self._file < 0

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _discard(self) -> None:
        self._close()
        self._part.unlink(missing_ok=True)

    def _resume(self) -> None:
        """Feed an earlier attempt's bytes to the digest; start anew if there are more than the unit has."""
        if os.fstat(self._file).st_size > self._size_bytes:
            os.ftruncate(self._file, 0)
        while chunk := os.pread(self._file, _CHUNK_BYTES, self.received_bytes):
            self._state.update(chunk)
            self.received_bytes += len(chunk)


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a small file durably, all or nothing.

    Args:
        path: Its directory is made if need be.
        content: All of it.
        mode: Of the file, less the process's umask; nobody else can open it before it has it.

    Raises:
        CapacityError: The disk is full.
        CheckpointError: The file cannot be written.
    """
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # one that is left over keeps its own mode
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        _raise_write_error(path, error, len(content))


def file_bytes(path: Path) -> int:
    """The size of a file.

    Raises:
        CheckpointError: There is none.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def read_range(path: Path, offset_bytes: int, length_bytes: int) -> memoryview:
    """Read part of a file into fresh, 64-byte aligned memory; shorter than asked for at its end.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            end_bytes = max(offset_bytes, min(offset_bytes + length_bytes, size_bytes))
            out = bytes_of(aligned_buffer(end_bytes - offset_bytes))
            done = 0
            while done < len(out):
                got = os.preadv(file.fileno(), [out[done:]], offset_bytes + done)
                if got == 0:
                    raise CheckpointError(f"{path} has shrunk while it was read")
                done += got
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return out


def read_scattered(path: Path, outs: Sequence[memoryview]) -> bool:
    """Fill several buffers with a file's bytes, one after the other; False if the file is not exactly as long as they.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            for out in outs:
                done = 0
                while done < len(out):
                    got = file.readinto(out[done:])
                    if not got:
                        return False
                    done += got
            return not file.read(1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def has_digest(path: Path, size_bytes: int, digest: bytes, progress: Progress | None = None) -> bool:
    """Read a whole file and tell whether it is the unit that it should be.

    Raises:
        CheckpointError: It cannot be read.
    """
    state = new_digest()
    done_bytes = 0
    while chunk := read_range(path, done_bytes, _CHUNK_BYTES):
        state.update(chunk)
        done_bytes += len(chunk)
        if progress is not None:
            progress(done_bytes)
    return done_bytes == size_bytes and state.digest() == digest


def sync_directory(directory: Path) -> None:
    """Make renames within a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Some network file systems cannot; then the rename is as durable as they make it.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_write_error(path: Path, error: OSError, needed_bytes: int) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise CapacityError(
            f"the disk is full: {path} needs {format_size(needed_bytes)} more; make room or give another directory"
        ) from error
    raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
