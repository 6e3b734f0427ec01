"""What a node without the model's files keeps on disk: the manifest, small files, the trunk, and some experts.

    <directory>/manifest.msgpack
    <directory>/config.json, tokenizer.json, ...
    <directory>/trunk.bin
    <directory>/experts/LLL-EEE.bin        (layer, index)

Each is a unit, received by `begin`, `append` and `finish` from whoever has it. The directory belongs to one process at
a time. A store never computes with weights whose digest is wrong: what turns out to be damaged is deleted, and can be
received again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from meshmoe.core.errors import CheckpointError, WireError
from meshmoe.core.ids import ExpertId
from meshmoe.model.architecture import Architecture
from meshmoe.model.config_file import load_config
from meshmoe.model.layout import Layout, plan_layout
from meshmoe.model.manifest import Manifest, check_layout, decode_manifest
from meshmoe.model.source import Progress, WeightSource
from meshmoe.model.tensor_files import INDEX_FILE, SINGLE_FILE
from meshmoe.model.tensors import TensorSpec, tensor_of, view_as
from meshmoe.model.unit_files import IncomingUnit, has_digest, read_range, read_scattered, write_whole
from meshmoe.model.unit_names import MANIFEST_NAME, UnitName, digest_of, new_digest

_DIGEST_NAME = re.compile(r"[0-9a-f]{40}\Z")
_TRUNK = UnitName("trunk")
_MANIFEST = UnitName("manifest")


def is_store(directory: Path) -> bool:
    """Whether a directory is a store rather than a checkpoint."""
    whole = any((directory / name).exists() for name in (SINGLE_FILE, INDEX_FILE))
    return not whole and (directory / MANIFEST_NAME).is_file()


class PartialStore(WeightSource):
    """A directory with some units of one model.

    Attributes:
        directory: Where it lies.
        manifest: The model's.
        model_digest: The model's name, 40 hex digits.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        """Open the store of a model, or make an empty one.

        Args:
            directory: Created if need be. If its name looks like a model digest, it must be this model's.
            manifest: Of the model.

        Raises:
            CheckpointError: The directory is another model's, or cannot be used.
            CapacityError: The disk is full.
        """
        self.directory = directory
        self.manifest = manifest
        self.model_digest = manifest.model_digest
        self._lock = threading.Lock()  # of the two collections below; held for moments only
        self._incoming: dict[UnitName, IncomingUnit] = {}
        self._whole: set[UnitName] = set()
        self._begin_lock = threading.Lock()
        self._plan_lock = threading.Lock()
        self._trunk_lock = threading.Lock()
        self._skeleton: tuple[Architecture, Layout] | None = None
        self._trunk_verified = False
        self._trunk_places: dict[str, tuple[int, TensorSpec]] = {}
        offset_bytes = 0
        for tensor in manifest.trunk.tensors:
            self._trunk_places[tensor.key] = (offset_bytes, tensor.spec)
            offset_bytes += tensor.spec.size_bytes
        _check_name(directory, self.model_digest)
        path = directory / MANIFEST_NAME
        if path.exists():
            if digest_of(_read_manifest(path)).hex() != self.model_digest:
                raise CheckpointError(
                    f"{directory} holds parts of another model than {self.model_digest}; give another directory"
                )
            self._look_around()
        else:
            write_whole(path, manifest.encode())

    @classmethod
    def open(cls, directory: Path, expected_digest: str | None = None) -> PartialStore:
        """Open an existing store.

        Args:
            directory: Of the store.
            expected_digest: The model digest that it must have; None to accept any.

        Raises:
            CheckpointError: There is no store, its manifest is damaged, or it is another model's.
        """
        path = directory / MANIFEST_NAME
        data = _read_manifest(path)
        try:
            manifest = decode_manifest(data)
        except WireError as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete {directory} to fetch it anew") from error
        if expected_digest is not None and manifest.model_digest != expected_digest:
            raise CheckpointError(
                f"{directory} holds the model {manifest.model_digest}, not {expected_digest}; give another directory"
            )
        return cls(directory, manifest)

    @property
    def architecture(self) -> Architecture:
        """The model's skeleton.

        Raises:
            CheckpointError: ``config.json`` was not received yet, or does not fit the manifest.
        """
        return self._plan()[0]

    @property
    def layout(self) -> Layout:
        """Which tensors are experts and which are trunk.

        Raises:
            CheckpointError: As ``architecture``.
        """
        return self._plan()[1]

    # --- receiving -----------------------------------------------------------------------------------------------

    def begin(self, unit: UnitName) -> int:
        """Make ready to receive a unit, or go on with one.

        Returns:
            The offset in bytes of the first byte that is missing; the unit's size if it only needs to be finished.

        Raises:
            WireError: The model has no such unit.
            CapacityError: The disk has no room for it.
            CheckpointError: The unit is here already, or the directory cannot be written.
        """
        entry = self.manifest.unit_entry(unit)
        if entry is None:
            raise WireError(f"model {self.model_digest} has no unit {unit}")
        with self._begin_lock:
            if self.has(unit):
                raise CheckpointError(f"{unit} is already in {self.directory}")
            with self._lock:
                incoming = self._incoming.get(unit)
            if incoming is None:
                incoming = IncomingUnit(self.directory, unit, *entry)
                with self._lock:
                    self._incoming[unit] = incoming
            return incoming.received_bytes

    def append(self, unit: UnitName, offset_bytes: int, chunk: bytes | bytearray | memoryview) -> None:
        """Write the next bytes of a unit.

        Raises:
            WireError: ``begin`` was not called, or the bytes do not belong here.
            CapacityError: The disk is full.
            CheckpointError: The file cannot be written.
        """
        self._incoming_unit(unit).append(offset_bytes, chunk)

    def finish(self, unit: UnitName) -> None:
        """Check a unit's digest and keep it.

        Raises:
            WireError: Bytes are missing; or the digest is wrong, and what was received is deleted.
            CapacityError: The disk is full.
            CheckpointError: The file cannot be written.
        """
        incoming = self._incoming_unit(unit)
        try:
            incoming.finish()
        except WireError:
            if incoming.closed:
                with self._lock:
                    self._incoming.pop(unit, None)
            raise
        with self._lock:
            self._incoming.pop(unit, None)
            self._whole.add(unit)
            if unit == _TRUNK:
                self._trunk_verified = True

    def delete(self, unit: UnitName) -> None:
        """Forget a unit, whole or partly received; nothing happens if there is nothing of it."""
        with self._lock:
            incoming = self._incoming.pop(unit, None)
            self._whole.discard(unit)
        if incoming is not None:
            incoming.discard()
        path = self.directory / unit.path
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".part").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files of units that are being received; what arrived of them stays for the next time."""
        with self._lock:
            incoming = list(self._incoming.values())
            self._incoming.clear()
        for unit in incoming:
            unit.close()

    # --- what is here --------------------------------------------------------------------------------------------

    def has(self, unit: UnitName) -> bool:
        """Whether the whole unit is here."""
        with self._lock:
            return unit == _MANIFEST or unit in self._whole

    def missing(self) -> list[UnitName]:
        """What a node cannot do without and lacks: small files first, then the trunk. Experts are not among them."""
        return [unit for unit in self.manifest.units() if unit.kind != "expert" and not self.has(unit)]

    def stored_experts(self) -> frozenset[ExpertId]:
        """The experts whose units are here."""
        with self._lock:
            return frozenset(unit.expert_id for unit in self._whole if unit.kind == "expert")

    def stored_bytes(self) -> int:
        """Bytes of all whole units."""
        with self._lock:
            whole = list(self._whole)
        return sum(self.unit_bytes(unit) for unit in whole)

    # --- reading -------------------------------------------------------------------------------------------------

    def has_unit(self, unit: UnitName) -> bool:
        """Whether the whole unit is here."""
        return self.has(unit)

    def has_expert(self, expert: ExpertId) -> bool:
        """Whether the expert's unit is here."""
        return self.has(UnitName.of_expert(expert))

    def unit_bytes(self, unit: UnitName) -> int:
        """Size of a unit of the model, whether it is here or not.

        Raises:
            CheckpointError: The model has no such unit.
        """
        if unit == _MANIFEST:
            return len(self.manifest.encode())
        entry = self.manifest.unit_entry(unit)
        if entry is None:
            raise CheckpointError(f"model {self.model_digest} has no unit {unit}")
        return entry[0]

    def read_unit(self, unit: UnitName, offset_bytes: int, length_bytes: int) -> memoryview:
        """Read part of any unit, to serve it to a peer; shorter than asked for at its end. Nothing is verified.

        Raises:
            CheckpointError: It is not here or cannot be read.
        """
        self._require(unit)
        return read_range(self.directory / unit.path, offset_bytes, length_bytes)

    def expert_digest(self, expert: ExpertId) -> bytes | None:
        """The digest that the expert's unit must have."""
        return self.manifest.expert_digest(expert)

    def read_expert_into(self, expert: ExpertId, pieces: Sequence[memoryview]) -> None:
        """Read an expert's unit, each of its pieces to a place of its own, and verify it.

        Raises:
            CheckpointError: It is not here, cannot be read, or is damaged, and then it is deleted.
        """
        unit = UnitName.of_expert(expert)
        self._require(unit)
        whole = read_scattered(self.directory / unit.path, pieces)
        state = new_digest()
        for piece in pieces:
            state.update(piece)
        if not whole or state.digest() != self.expert_digest(expert):
            self.delete(unit)
            raise CheckpointError(f"{unit} in {self.directory} was damaged and is deleted; fetch it again")

    def trunk_spec(self, key: str) -> TensorSpec:
        """Dtype and shape of one tensor of the trunk."""
        return self._trunk_places[key][1]

    def read_trunk(self, offset_bytes: int, length_bytes: int) -> memoryview:
        """Read part of the trunk's bytes; shorter than asked for at its end.

        Raises:
            CheckpointError: It is not here or cannot be read.
        """
        return self.read_unit(_TRUNK, offset_bytes, length_bytes)

    def read_trunk_tensor(self, key: str) -> torch.Tensor:
        """Read one tensor of the trunk into fresh, 64-byte aligned memory, as stored; verifies the trunk first.

        Raises:
            CheckpointError: It is not here, cannot be read, or is damaged, and then it is deleted.
        """
        self.verify_trunk()
        offset_bytes, spec = self._trunk_places[key]
        content = self.read_trunk(offset_bytes, spec.size_bytes)
        if len(content) != spec.size_bytes:
            raise CheckpointError(f"{self.directory / _TRUNK.path} has shrunk; delete it to fetch it again")
        return view_as(tensor_of(content), spec)

    def verify_trunk(self, progress: Progress | None = None) -> None:
        """Check the trunk's digest, once in the store's life; at once true of a trunk that was just received.

        Raises:
            CheckpointError: It is not here, cannot be read, or is damaged, and then it is deleted.
        """
        with self._trunk_lock:
            if self._trunk_verified:
                return
            self._require(_TRUNK)
            trunk = self.manifest.trunk
            if not has_digest(self.directory / _TRUNK.path, trunk.size_bytes, trunk.digest, progress):
                self.delete(_TRUNK)
                raise CheckpointError(f"the trunk in {self.directory} was damaged and is deleted; fetch it again")
            self._trunk_verified = True

    # --- inside --------------------------------------------------------------------------------------------------

    def _incoming_unit(self, unit: UnitName) -> IncomingUnit:
        with self._lock:
            incoming = self._incoming.get(unit)
        if incoming is None:
            raise WireError(f"{unit} is not being received")
        return incoming

    def _require(self, unit: UnitName) -> None:
        if not self.has(unit):
            raise CheckpointError(f"{unit} is not in {self.directory}")

    def _look_around(self) -> None:
        """Take stock of an existing store: small files by digest, large units by size; those are verified when read."""
        for unit in self.manifest.units():
            path = self.directory / unit.path
            entry = self.manifest.unit_entry(unit)
            if entry is None or not path.is_file():
                continue
            size_bytes, digest = entry
            whole = path.stat().st_size == size_bytes
            if whole and unit.kind == "file":
                whole = has_digest(path, size_bytes, digest)
            if whole:
                self._whole.add(unit)
            else:
                path.unlink()

    def _plan(self) -> tuple[Architecture, Layout]:
        with self._plan_lock:
            if self._skeleton is None:
                self._require(UnitName("file", "config.json"))
                architecture = Architecture(load_config(self.directory), str(self.directory))
                if architecture.family != self.manifest.family:
                    raise CheckpointError(
                        f"{self.directory}: config.json describes a {architecture.family} model, "
                        f"but the manifest a {self.manifest.family} model; join another mesh"
                    )
                layout = plan_layout(architecture, self.manifest.tensors(), str(self.directory))
                check_layout(self.manifest, layout, str(self.directory))
                self._skeleton = (architecture, layout)
            return self._skeleton


def _read_manifest(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path.parent} is not a store: {path.name} cannot be read: {error.strerror}") from error


def _check_name(directory: Path, model_digest: str) -> None:
    if _DIGEST_NAME.match(directory.name) and directory.name != model_digest:
        raise CheckpointError(f"{directory} is named after another model than {model_digest}; give another directory")
