"""The safetensors files of a checkpoint: what they hold and where, and reads that leave nothing behind in memory.

The library opens every file once: it checks the format and names the tensors in the order in which they lie. A valid
file has no gaps, so order, shapes and file size give each tensor's place. Bytes are then read with ``preadv`` into
buffers of ours, because the library's lazy tensors are views of a memory map: touched pages count as this process's
memory until the last view of the file is gone, a file that shrinks kills the process with SIGBUS instead of raising,
and its ``pread`` backend reads a whole tensor for a slice and holds the interpreter lock (measured, safetensors 0.8).
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from meshmoe.core.errors import CheckpointError
from meshmoe.core.units import format_size
from meshmoe.model.tensors import ITEM_BYTES, TensorSpec

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class _Place(NamedTuple):
    path: Path
    descriptor: int
    begin: int
    spec: TensorSpec


class TensorFiles:
    """All tensors of a checkpoint directory.

    Attributes:
        paths: The safetensors files, and the index if there is one.
        tensors: Dtype and shape of every tensor, by key.
    """

    def __init__(self, directory: Path) -> None:
        """Open all files and read their headers.

        Raises:
            CheckpointError: Files are missing, truncated, damaged, contradict each other, or hold unusable dtypes.
        """
        files, indexed = _find_files(directory)
        self.paths: tuple[Path, ...] = (*files, *([directory / INDEX_FILE] if indexed else []))
        descriptors: list[int] = []
        weakref.finalize(self, _close, descriptors)
        self._places: dict[str, _Place] = {}
        for path in files:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
            descriptors.append(descriptor)
            for key, place in _scan(path, descriptor):
                if key in self._places:
                    raise CheckpointError(f"tensor {key} is in both {self._places[key].path} and {path}; remove one")
                self._places[key] = place
        for key, name in indexed.items():
            if key not in self._places or self._places[key].path.name != name:
                raise CheckpointError(
                    f"{directory / INDEX_FILE} names tensor {key}, which {name} lacks; download the checkpoint again"
                )
        self.tensors = {key: place.spec for key, place in self._places.items()}

    def place(self, key: str) -> tuple[Path, int]:
        """In which file a tensor lies, and from which byte on."""
        place = self._places[key]
        return place.path, place.begin

    def read_into(self, key: str, offset_bytes: int, out: memoryview) -> None:
        """Fill ``out`` with the tensor's bytes from ``offset_bytes`` on. Safe from any thread; releases the GIL.

        Raises:
            CheckpointError: The file can no longer be read, or has shrunk.
        """
        place = self._places[key]
        assert offset_bytes >= 0 and offset_bytes + len(out) <= place.spec.size_bytes, (key, offset_bytes, len(out))
        done = 0
        while done < len(out):
            try:
                got = os.preadv(place.descriptor, [out[done:]], place.begin + offset_bytes + done)
            except OSError as error:
                raise CheckpointError(f"{place.path} cannot be read: {error.strerror}") from error
            if got == 0:
                raise CheckpointError(f"{place.path} has shrunk since it was opened; restore it and start again")
            done += got


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _find_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a checkpoint, and which tensor the index expects in which."""
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE], {}
    index = directory / INDEX_FILE
    if not index.is_file():
        others = sorted(p.name for p in directory.glob("*.bin"))
        hint = f"it has {others[0]}: save it again as safetensors" if others else "download the weights"
        raise CheckpointError(f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}; {hint}")
    try:
        content: Any = json.loads(index.read_bytes())
        weight_map: dict[str, str] = content["weight_map"]
        names = sorted(set(weight_map.values()))
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError("weight_map must map tensors to plain file names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a valid index ({error}); download it again") from error
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{directory} lacks {missing[0]}{more}, named in {INDEX_FILE}; download the rest")
    return [directory / name for name in names], weight_map


def _scan(path: Path, descriptor: int) -> Iterator[tuple[str, _Place]]:
    try:
        with safe_open(path, framework="pt") as handle:
            ordered = list(handle.offset_keys())
            specs = [_spec(path, key, handle.get_slice(key)) for key in ordered]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_damage(path, error)) from error
    size_bytes = os.fstat(descriptor).st_size
    begin = size_bytes - sum(spec.size_bytes for spec in specs)
    for key, spec in zip(ordered, specs, strict=True):
        yield key, _Place(path, descriptor, begin, spec)
        begin += spec.size_bytes


def _spec(path: Path, key: str, stored: Any) -> TensorSpec:
    dtype = str(stored.get_dtype())
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{path}: tensor {key} has dtype {dtype}, which is not supported; convert it to BF16")
    return TensorSpec(dtype, tuple(stored.get_shape()))


def _damage(path: Path, error: Exception) -> str:
    """Say how a file that the library refused is damaged. The header is looked at for this message only."""
    actual_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                return f"{path} is a Git LFS pointer, not the weights; run git lfs pull there"
            header_bytes = int.from_bytes(start, "little")
            header: dict[str, Any] = json.loads(file.read(min(header_bytes, 100_000_000)))
        ends: Iterable[int] = (entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        expected_bytes = 8 + header_bytes + max(ends)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return f"{path} ({format_size(actual_bytes)}) is not a safetensors file ({error}); download it again"
    if actual_bytes < expected_bytes:
        return (
            f"{path} is truncated: {actual_bytes} of {expected_bytes} bytes "
            f"({format_size(actual_bytes)} of {format_size(expected_bytes)}); download it again"
        )
    return f"{path} is damaged ({error}); download it again"
