"""Which tensors of a checkpoint are routed experts, which are trunk, and which are not used.

An expert's *unit* is the concatenation of its raw tensor pieces in ascending order of their checkpoint keys (with
``{}`` for the expert's index). Keys and contents decide a unit, and nothing else: the same weights in other shards give
the same unit. A tensor that holds a whole layer's experts is cut along its first axis.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from transformers.core_model_loading import dot_natural_key

from meshmoe.core.errors import CheckpointError
from meshmoe.core.ids import ExpertId
from meshmoe.model.architecture import Architecture, ExpertsShape
from meshmoe.model.tensors import TensorSpec

INDEX_MARK = "{}"


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor, or one slice of a tensor, of every expert of a layer.

    Attributes:
        key: Checkpoint key; ``{}`` stands for the expert's index. Without it the tensor holds all experts of the layer,
            and expert ``e`` has the ``e``-th of ``n_experts`` equal parts of its first axis.
        spec: Dtype and shape of one expert's part (of a fused ``[E, a, b]`` tensor: ``[1, a, b]``).
        parameter: Name of the model's parameter that it becomes (part of), relative to the experts module.
        pattern: The converter's source pattern that it matches; None when it is used as it is.
        offset_bytes: Where it begins in the unit.
    """

    key: str
    spec: TensorSpec
    parameter: str
    pattern: str | None
    offset_bytes: int

    @property
    def fused(self) -> bool:
        """Whether the checkpoint's tensor holds all experts of the layer."""
        return INDEX_MARK not in self.key

    def key_of(self, index: int) -> str:
        """The checkpoint key of expert ``index``'s tensor."""
        return self.key.replace(INDEX_MARK, str(index))


@dataclass(frozen=True, slots=True)
class MoeLayer:
    """One layer with routed experts.

    Attributes:
        ordinal: Counts such layers from 0; ``ExpertId.layer``.
        name: Path of the experts module in the model.
        n_experts: Routed experts.
        top_k: Experts a token is routed to, where the model says so.
        pieces: What an expert consists of, in the order of the unit.
        expert_bytes: Size of one expert's unit; all experts of a layer are alike.
        parameters: Shape of what an expert is loaded as, by parameter name.
    """

    ordinal: int
    name: str
    n_experts: int
    top_k: int | None
    pieces: tuple[Piece, ...]
    expert_bytes: int
    parameters: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Layout:
    """The division of a checkpoint.

    Attributes:
        layers: The MoE layers in the model's order.
        trunk: Keys of all other tensors that the model uses, ascending; the trunk's bytes are theirs, in this order.
        ignored: Keys that the model has no use for (multi-token prediction layers, say).
        trunk_bytes: Size of the trunk as stored.
    """

    layers: tuple[MoeLayer, ...]
    trunk: tuple[str, ...]
    ignored: tuple[str, ...]
    trunk_bytes: int

    def experts(self) -> tuple[ExpertId, ...]:
        """All routed experts, layer by layer."""
        return tuple(ExpertId(layer.ordinal, index) for layer in self.layers for index in range(layer.n_experts))

    def has(self, expert: ExpertId) -> bool:
        """Whether the model has such an expert."""
        return 0 <= expert.layer < len(self.layers) and 0 <= expert.index < self.layers[expert.layer].n_experts

    def layer_of(self, expert: ExpertId) -> MoeLayer:
        """The layer of an expert.

        Raises:
            CheckpointError: The model has no such expert.
        """
        if not self.has(expert):
            raise CheckpointError(f"the model has no expert {expert}: it has {len(self.layers)} layers with experts")
        return self.layers[expert.layer]


def plan_layout(architecture: Architecture, tensors: Mapping[str, TensorSpec], origin: str) -> Layout:
    """Decide for every tensor what it is.

    Args:
        architecture: The model's skeleton.
        tensors: Dtype and shape of every tensor in the checkpoint, by key.
        origin: The checkpoint's name, for messages.

    Raises:
        CheckpointError: Expert tensors are missing, have the wrong shape, or are named in no recognisable way.
    """
    owners = {f"{e.name}.{name}": (e.name, name) for e in architecture.experts for name in e.parameters}
    expert_keys: dict[str, dict[tuple[str, str | None], list[str]]] = defaultdict(lambda: defaultdict(list))
    trunk, ignored = [], []
    for key in sorted(tensors):
        target, pattern = architecture.resolve(key)
        if target is None:
            ignored.append(key)
        elif target in owners:
            module, name = owners[target]
            expert_keys[module][name, pattern].append(key)
        else:
            trunk.append(key)
    layers = []
    for ordinal, shape in enumerate(architecture.experts):
        layer, unused = _plan_layer(ordinal, shape, expert_keys[shape.name], tensors, origin)
        layers.append(layer)
        ignored.extend(unused)
    trunk_bytes = sum(tensors[key].size_bytes for key in trunk)
    return Layout(tuple(layers), tuple(trunk), tuple(sorted(ignored)), trunk_bytes)


def _plan_layer(
    ordinal: int,
    shape: ExpertsShape,
    keys: Mapping[tuple[str, str | None], list[str]],
    tensors: Mapping[str, TensorSpec],
    origin: str,
) -> tuple[MoeLayer, list[str]]:
    """Plan one layer; also returns the keys of experts that the model has no room for."""
    found: list[tuple[str, TensorSpec, str, str | None]] = []
    unused: list[str] = []
    for (name, pattern), group in keys.items():
        if len(group) == 1 and shape.n_experts > 1:
            spec = tensors[group[0]]
            if not spec.shape or spec.shape[0] % shape.n_experts:
                raise CheckpointError(
                    f"{origin}: tensor {group[0]} of shape {list(spec.shape)} cannot be cut into "
                    f"{shape.n_experts} experts; the checkpoint does not fit its config.json"
                )
            part = TensorSpec(spec.dtype, (spec.shape[0] // shape.n_experts, *spec.shape[1:]))
            found.append((group[0], part, name, pattern))
        else:
            template, beyond = _template(group, shape, tensors, origin)
            unused.extend(beyond)
            found.append((template, tensors[template.replace(INDEX_MARK, "0")], name, pattern))
    for name, wanted in shape.parameters.items():
        stored = sum(math.prod(spec.shape) for _, spec, owner, _ in found if owner == name)
        if stored != math.prod(wanted):
            raise CheckpointError(
                f"{origin}: {shape.name}.{name} needs {math.prod(wanted)} numbers an expert, but the files hold "
                f"{stored}; the checkpoint is incomplete, or does not fit its config.json"
            )
    pieces, offset_bytes = [], 0
    for key, spec, name, pattern in sorted(found):
        pieces.append(Piece(key, spec, name, pattern, offset_bytes))
        offset_bytes += spec.size_bytes
    layer = MoeLayer(ordinal, shape.name, shape.n_experts, shape.top_k, tuple(pieces), offset_bytes, shape.parameters)
    return layer, unused


def _template(
    group: list[str], shape: ExpertsShape, tensors: Mapping[str, TensorSpec], origin: str
) -> tuple[str, list[str]]:
    """Find where the expert's index stands in keys such as ``...experts.7.w1.weight``, and that none is missing."""
    group = sorted(group, key=dot_natural_key)
    parts = [key.split(".") for key in group]
    varying = [i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1]
    if len(group) == 1:
        varying = [i for i, part in enumerate(parts[0]) if part == "0"][-1:]
    if len(varying) != 1 or not all(part[varying[0]].isdecimal() for part in parts):
        raise CheckpointError(f"{origin}: cannot tell the experts of {shape.name} apart by keys such as {group[0]}")
    (column,) = varying
    indices = {int(part[column]) for part in parts}
    template = ".".join([*parts[0][:column], INDEX_MARK, *parts[0][column + 1 :]])
    for index in range(shape.n_experts):
        key = template.replace(INDEX_MARK, str(index))
        if index not in indices:
            raise CheckpointError(f"{origin}: tensor {key} is missing; the checkpoint is incomplete, download it again")
        if tensors[key] != tensors[template.replace(INDEX_MARK, "0")]:
            raise CheckpointError(f"{origin}: tensor {key} differs in dtype or shape from expert 0's; it is damaged")
    return template, [key for key, part in zip(group, parts, strict=True) if int(part[column]) >= shape.n_experts]
