"""The manifest: the description of a model that travels between nodes, and whose digest is the model's name.

It says which small files belong to the model, which tensors make up the trunk and in what order, and what one expert of
each layer consists of, with the digest of every unit. Its encoding is canonical: the same files and weights give the
same bytes on every node, however they are sharded, so one 40-digit name stands for all of it. A model of 48 layers with
128 experts is described in about 200 kB.

A manifest may come from a stranger: `decode_manifest` bounds and checks everything before anyone computes with it.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from meshmoe.core.errors import CheckpointError, WireError
from meshmoe.core.ids import ExpertId
from meshmoe.model.layout import INDEX_MARK, Layout, MoeLayer
from meshmoe.model.tensors import ITEM_BYTES, TensorSpec
from meshmoe.model.unit_names import DIGEST_BYTES, EXPERTS_MAX, LAYERS_MAX, MODEL_FILES, UnitName, digest_of

MANIFEST_FORMAT = 1
MANIFEST_BYTES_MAX = 64 << 20
FILE_BYTES_MAX = 64 << 20
UNIT_BYTES_MAX = 1 << 46
TRUNK_TENSORS_MAX = 1 << 17
PIECES_MAX = 64
EXPERT_TENSORS_MAX = 1 << 20

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,511}\Z", re.ASCII)

Digest = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Text = Annotated[str, Meta(min_length=1, max_length=512)]
Axis = Annotated[int, Meta(ge=0, lt=1 << 40)]
Shape = Annotated[tuple[Axis, ...], Meta(max_length=8)]
Size = Annotated[int, Meta(ge=0, le=UNIT_BYTES_MAX)]


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything inside a manifest: arrays, because field names would be most of the bytes."""


class FileEntry(_Part, frozen=True):
    """A small file of the model: configuration or tokenizer.

    Attributes:
        name: One of ``MODEL_FILES``.
        size_bytes: Its size.
        digest: Of its content.
    """

    name: Text
    size_bytes: Annotated[int, Meta(ge=0, le=FILE_BYTES_MAX)]
    digest: Digest


class TensorEntry(_Part, frozen=True):
    """A tensor of the trunk, or one expert's part of a tensor.

    Attributes:
        key: Checkpoint key; of an expert's part with ``{}`` for the index, or without if the tensor holds all experts.
        dtype: Safetensors dtype code.
        shape: Of the tensor or the part.
    """

    key: Text
    dtype: Text
    shape: Shape

    @property
    def spec(self) -> TensorSpec:
        """Dtype and shape."""
        return TensorSpec(self.dtype, self.shape)


class TrunkEntry(_Part, frozen=True):
    """Everything but the routed experts.

    Attributes:
        digest: Of the trunk's bytes.
        size_bytes: Of all tensors.
        tensors: In ascending order of their keys, which is also the order of their bytes.
    """

    digest: Digest
    size_bytes: Size
    tensors: Annotated[tuple[TensorEntry, ...], Meta(max_length=TRUNK_TENSORS_MAX)]


class LayerEntry(_Part, frozen=True):
    """One layer with routed experts.

    Attributes:
        module: Path of the experts module in the model.
        expert_bytes: Size of each expert's unit.
        pieces: What one expert consists of, in ascending order of keys, which is also the order of the unit's bytes.
        digests: Of each expert's unit, 20 bytes an expert, one after the other.
    """

    module: Text
    expert_bytes: Annotated[int, Meta(ge=1, le=UNIT_BYTES_MAX)]
    pieces: Annotated[tuple[TensorEntry, ...], Meta(min_length=1, max_length=PIECES_MAX)]
    digests: Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=EXPERTS_MAX * DIGEST_BYTES)]

    @property
    def n_experts(self) -> int:
        """Routed experts of the layer."""
        return len(self.digests) // DIGEST_BYTES

    def digest_of(self, index: int) -> bytes:
        """The digest of one expert's unit."""
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]


class Manifest(_Part, frozen=True):
    """A model.

    Attributes:
        format: Of this description; ``MANIFEST_FORMAT``.
        family: transformers model type.
        files: In ascending order of names; ``config.json`` is among them.
        trunk: Everything but the routed experts.
        layers: The MoE layers in the model's order.
    """

    format: Annotated[int, Meta(ge=MANIFEST_FORMAT, le=MANIFEST_FORMAT)]
    family: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
    files: Annotated[tuple[FileEntry, ...], Meta(max_length=len(MODEL_FILES))]
    trunk: TrunkEntry
    layers: Annotated[tuple[LayerEntry, ...], Meta(min_length=1, max_length=LAYERS_MAX)]

    def encode(self) -> bytes:
        """The canonical bytes."""
        return msgspec.msgpack.encode(self)

    @property
    def model_digest(self) -> str:
        """The model's name: 40 hex digits."""
        return digest_of(self.encode()).hex()

    @property
    def expert_bytes_total(self) -> int:
        """Size of all routed experts."""
        return sum(layer.expert_bytes * layer.n_experts for layer in self.layers)

    def units(self) -> list[UnitName]:
        """All units of the model but the manifest itself: files, trunk, experts."""
        names = [UnitName("file", entry.name) for entry in self.files]
        names.append(UnitName("trunk"))
        for number, layer in enumerate(self.layers):
            names.extend(UnitName("expert", "", number, index) for index in range(layer.n_experts))
        return names

    def unit_entry(self, unit: UnitName) -> tuple[int, bytes] | None:
        """Size in bytes and digest of a unit; None when the model has no such unit. Not for the manifest itself."""
        if unit.kind == "trunk":
            return self.trunk.size_bytes, self.trunk.digest
        if unit.kind == "file":
            return next(((file.size_bytes, file.digest) for file in self.files if file.name == unit.name), None)
        if unit.kind == "expert" and unit.layer < len(self.layers):
            layer = self.layers[unit.layer]
            return (layer.expert_bytes, layer.digest_of(unit.index)) if unit.index < layer.n_experts else None
        return None

    def expert_digest(self, expert: ExpertId) -> bytes:
        """The digest of an expert's unit."""
        return self.layers[expert.layer].digest_of(expert.index)

    def tensors(self) -> dict[str, TensorSpec]:
        """Dtype and shape of every tensor of the checkpoint that it describes, as far as the model uses them."""
        specs = {tensor.key: tensor.spec for tensor in self.trunk.tensors}
        for layer in self.layers:
            for piece in layer.pieces:
                if INDEX_MARK in piece.key:
                    specs.update((piece.key.replace(INDEX_MARK, str(e)), piece.spec) for e in range(layer.n_experts))
                else:
                    first, *rest = piece.shape
                    specs[piece.key] = TensorSpec(piece.dtype, (first * layer.n_experts, *rest))
        return specs


def layer_entry(layer: MoeLayer, digests: bytes) -> LayerEntry:
    """Describe a layer of a layout."""
    pieces = tuple(TensorEntry(piece.key, *piece.spec) for piece in layer.pieces)
    return LayerEntry(layer.name, layer.expert_bytes, pieces, digests)


def check_layout(manifest: Manifest, layout: Layout, origin: str) -> None:
    """Make sure that this node's transformers divides the model as the manifest does.

    Args:
        manifest: Of the model.
        layout: As planned here from the manifest's tensors.
        origin: Where the manifest came from, for messages.

    Raises:
        CheckpointError: It does not, so units would be misread.
    """
    here = [(layer.name, layer.n_experts, layer_entry(layer, b"").pieces) for layer in layout.layers]
    there = [(layer.module, layer.n_experts, layer.pieces) for layer in manifest.layers]
    if here != there or layout.trunk != tuple(tensor.key for tensor in manifest.trunk.tensors):
        raise CheckpointError(
            f"{origin}: this node's transformers divides the model into other experts than the manifest says; "
            "install the transformers version that the other nodes use"
        )


def decode_manifest(data: bytes | bytearray | memoryview, expected_digest: str | None = None) -> Manifest:
    """Read a manifest that may come from anywhere.

    Args:
        data: Its encoding.
        expected_digest: The model digest that it must have, 40 hex digits; None to accept any.

    Raises:
        WireError: It is not a manifest, or not the one expected.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise WireError(f"the manifest has {len(data)} bytes, more than the {MANIFEST_BYTES_MAX} that one may have")
    if expected_digest is not None and digest_of(data).hex() != expected_digest:
        raise WireError(f"the manifest does not have the digest {expected_digest} that was asked for")
    try:
        manifest = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"the manifest cannot be read: {error}") from error
    problem = _find_problem(manifest)
    if problem is not None:
        raise WireError(f"the manifest is not valid: {problem}")
    if manifest.encode() != data:
        raise WireError("the manifest is not valid: its encoding is not canonical")
    return manifest


_DECODER: msgspec.msgpack.Decoder[Manifest] = msgspec.msgpack.Decoder(Manifest)


def _find_problem(manifest: Manifest) -> str | None:
    """What the types cannot say: names, order, and sums."""
    names = [file.name for file in manifest.files]
    if not _ascending(names) or not MODEL_FILES.issuperset(names) or "config.json" not in names:
        return "its files are not sorted, not allowed, or without config.json"
    problem = _tensor_problem(manifest.trunk.tensors, manifest.trunk.size_bytes, "the trunk")
    if problem is not None:
        return problem
    if sum(layer.n_experts * len(layer.pieces) for layer in manifest.layers) > EXPERT_TENSORS_MAX:
        return f"its experts have more than {EXPERT_TENSORS_MAX} tensors"
    if len({layer.module for layer in manifest.layers}) != len(manifest.layers):
        return "two layers have the same module"
    keys = [tensor.key for tensor in manifest.trunk.tensors]
    for number, layer in enumerate(manifest.layers):
        where = f"layer {number}"
        if not _KEY.match(layer.module) or len(layer.digests) % DIGEST_BYTES:
            return f"{where} has an impossible module or digests"
        problem = _tensor_problem(layer.pieces, layer.expert_bytes, where)
        if problem is not None:
            return problem
        if any(not piece.shape for piece in layer.pieces):
            return f"{where} has an expert tensor without axes"
        keys.extend(piece.key for piece in layer.pieces)
    if len(set(keys)) != len(keys):
        return "a tensor appears twice"
    return None


def _tensor_problem(tensors: tuple[TensorEntry, ...], size_bytes: int, where: str) -> str | None:
    if not _ascending([tensor.key for tensor in tensors]):
        return f"the tensors of {where} are not sorted"
    for tensor in tensors:
        marks = tensor.key.count(INDEX_MARK)
        plain = tensor.key.replace(INDEX_MARK, "0")
        if not _KEY.match(plain) or marks > (0 if where == "the trunk" else 1):
            return f"{where} has a tensor with an impossible key"
        if tensor.dtype not in ITEM_BYTES:
            return f"tensor {tensor.key} has an unknown dtype"
    if sum(math.prod(t.shape) * ITEM_BYTES[t.dtype] for t in tensors) != size_bytes:
        return f"the tensors of {where} do not add up to its {size_bytes} bytes"
    return None


def _ascending(items: list[Any]) -> bool:
    return all(a < b for a, b in pairwise(items))
