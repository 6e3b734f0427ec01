"""A Hugging Face checkpoint directory, read piece by piece: opening it touches only configuration and headers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from meshmoe.core.errors import CheckpointError
from meshmoe.core.ids import ExpertId
from meshmoe.model.architecture import Architecture
from meshmoe.model.config_file import load_config
from meshmoe.model.layout import Layout, plan_layout
from meshmoe.model.manifest import Manifest
from meshmoe.model.manifest_cache import compute_manifest, fingerprint, recall, remember, small_files
from meshmoe.model.source import Progress, WeightSource
from meshmoe.model.tensor_files import TensorFiles
from meshmoe.model.tensors import TensorSpec, aligned_buffer, bytes_of, view_as
from meshmoe.model.unit_files import file_bytes, read_range
from meshmoe.model.unit_names import UnitName


class Checkpoint(WeightSource):
    """A whole model on this node's disk."""

    def __init__(self, directory: Path, architecture: Architecture, files: TensorFiles) -> None:
        """Use ``Checkpoint.open``."""
        self.directory = directory
        self._architecture = architecture
        self._files = files
        self._layout = plan_layout(architecture, files.tensors, str(directory))
        self._manifest: Manifest | None = None
        self._trunk = _Segments.of([(key, 0, files.tensors[key].size_bytes) for key in self._layout.trunk])

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Open a checkpoint directory.

        Args:
            directory: Holds ``config.json`` and ``model.safetensors``, or shards and their index.

        Raises:
            CheckpointError: It is not a usable Mixture-of-Experts checkpoint; the message says why.
        """
        if not directory.is_dir():
            raise CheckpointError(f"{directory} is not a directory: give the directory of a Hugging Face checkpoint")
        architecture = Architecture(load_config(directory), str(directory))
        return cls(directory, architecture, TensorFiles(directory))

    @property
    def architecture(self) -> Architecture:
        """The model's skeleton."""
        return self._architecture

    @property
    def layout(self) -> Layout:
        """Which tensors are experts and which are trunk."""
        return self._layout

    def manifest(self, progress: Progress | None = None, *, cache_dir: Path | None = None) -> Manifest:
        """Describe the model with the digests of all its parts; reads everything once, or asks the cache.

        Args:
            progress: Told the bytes done so far, on this thread; not called when the cache knows.
            cache_dir: Where results are kept; None to compute anew.

        Raises:
            CheckpointError: A file cannot be read.
        """
        if self._manifest is None:
            prints = fingerprint([*small_files(self.directory), *self._files.paths])
            found = recall(cache_dir, self.directory, prints, self.layout) if cache_dir is not None else None
            if found is None:
                found = compute_manifest(self, progress)
                if cache_dir is not None:
                    remember(cache_dir, self.directory, prints, found)
            self._manifest = found
        return self._manifest

    def has_expert(self, expert: ExpertId) -> bool:
        """Whether the model has such an expert: all of them are here."""
        return self.layout.has(expert)

    def expert_digest(self, expert: ExpertId) -> bytes | None:
        """The digest of an expert's unit; None until ``manifest`` has computed all digests."""
        return None if self._manifest is None else self._manifest.expert_digest(expert)

    def read_expert_into(self, expert: ExpertId, pieces: Sequence[memoryview]) -> None:
        """Read an expert's unit, each of its pieces to a place of its own.

        Raises:
            CheckpointError: There is no such expert, or its file cannot be read.
        """
        segments = self._expert_segments(expert)
        for (key, begin, _), out in zip(segments.parts, pieces, strict=True):
            self._files.read_into(key, begin, out)

    def trunk_spec(self, key: str) -> TensorSpec:
        """Dtype and shape of one tensor of the trunk."""
        return self._files.tensors[key]

    def read_trunk(self, offset_bytes: int, length_bytes: int) -> memoryview:
        """Read part of the trunk's bytes; shorter than asked for at its end.

        Raises:
            CheckpointError: A file cannot be read.
        """
        return self._read(self._trunk, offset_bytes, length_bytes)

    def read_trunk_tensor(self, key: str) -> torch.Tensor:
        """Read one tensor of the trunk into fresh, 64-byte aligned memory, as stored.

        Raises:
            CheckpointError: Its file cannot be read.
        """
        spec = self._files.tensors[key]
        buffer = aligned_buffer(spec.size_bytes)
        self._files.read_into(key, 0, bytes_of(buffer))
        return view_as(buffer, spec)

    def has_unit(self, unit: UnitName) -> bool:
        """Whether the unit can be served; everything of the model can, once the manifest is known."""
        if unit.kind == "manifest":
            return self._manifest is not None
        if unit.kind == "file":
            return (self.directory / unit.path).is_file()
        return unit.kind == "trunk" or self.has_expert(unit.expert_id)

    def unit_bytes(self, unit: UnitName) -> int:
        """Size of a unit.

        Raises:
            CheckpointError: The model has no such unit, or its manifest is not known yet.
        """
        if unit.kind == "trunk":
            return self.trunk_bytes
        if unit.kind == "expert":
            return self.expert_bytes(unit.expert_id)
        return len(self._encoded_manifest()) if unit.kind == "manifest" else file_bytes(self.directory / unit.path)

    def read_unit(self, unit: UnitName, offset_bytes: int, length_bytes: int) -> memoryview:
        """Read part of any unit, to serve it to a peer; shorter than asked for at its end.

        Raises:
            CheckpointError: There is no such unit, or it cannot be read.
        """
        if unit.kind == "trunk":
            return self.read_trunk(offset_bytes, length_bytes)
        if unit.kind == "expert":
            return self._read(self._expert_segments(unit.expert_id), offset_bytes, length_bytes)
        if unit.kind == "manifest":
            return memoryview(self._encoded_manifest())[offset_bytes : offset_bytes + length_bytes]
        return read_range(self.directory / unit.path, offset_bytes, length_bytes)

    def _encoded_manifest(self) -> bytes:
        if self._manifest is None:
            raise CheckpointError(f"the manifest of {self.directory} has not been computed yet")
        return self._manifest.encode()

    def _expert_segments(self, expert: ExpertId) -> _Segments:
        return _Segments.of(
            [
                (piece.key_of(expert.index), expert.index * size_bytes if piece.fused else 0, size_bytes)
                for piece in self.layout.layer_of(expert).pieces
                for size_bytes in [piece.spec.size_bytes]
            ]
        )

    def _read(self, segments: _Segments, offset_bytes: int, length_bytes: int) -> memoryview:
        """Read a range of the bytes that the segments make up, one after the other."""
        end_bytes = max(offset_bytes, min(offset_bytes + length_bytes, segments.size_bytes))
        out = bytes_of(aligned_buffer(end_bytes - offset_bytes))
        position = offset_bytes
        while position < end_bytes:
            index = bisect_right(segments.ends, position)
            (key, begin, size_bytes), stop = segments.parts[index], min(end_bytes, segments.ends[index])
            within = begin + position - (segments.ends[index] - size_bytes)
            self._files.read_into(key, within, out[position - offset_bytes : stop - offset_bytes])
            position = stop
        return out


@dataclass(frozen=True, slots=True)
class _Segments:
    """Ranges of tensors that follow each other in a unit.

    Attributes:
        parts: ``(key, first byte within the tensor, bytes)``.
        ends: Where each part ends in the unit.
    """

    parts: list[tuple[str, int, int]]
    ends: list[int]

    @classmethod
    def of(cls, parts: list[tuple[str, int, int]]) -> _Segments:
        return cls(parts, list(accumulate(size_bytes for _, _, size_bytes in parts)))

    @property
    def size_bytes(self) -> int:
        return self.ends[-1] if self.ends else 0
