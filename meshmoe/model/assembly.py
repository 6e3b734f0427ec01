"""How the stored pieces of one expert become the parameters that the model computes with.

transformers' converters do it: stack, concatenate, transpose. For most families the outcome is just the pieces one
after the other, and then they can be read from disk straight to where they belong: one pass over fresh memory instead
of three. Whether that is so is found out by converting noise once for each kind of layer, not known by family.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from meshmoe.core.errors import CheckpointError
from meshmoe.model.architecture import Architecture
from meshmoe.model.layout import MoeLayer
from meshmoe.model.tensors import aligned_buffer, bytes_of, view_as

_LOCK = threading.Lock()
_PLACES: WeakKeyDictionary[Architecture, dict[Any, tuple[int, ...] | None]] = WeakKeyDictionary()


def convert_expert(
    architecture: Architecture, layer: MoeLayer, index: int, pieces: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Convert one expert's tensors.

    Args:
        architecture: The model's skeleton.
        layer: Which layer.
        index: Which expert of it.
        pieces: A tensor for each of ``layer.pieces``, of its dtype and shape.

    Returns:
        Tensors by parameter name, in the shapes of ``layer.parameters``, in the stored dtype; perhaps views of pieces.

    Raises:
        CheckpointError: The outcome has another shape than the model's parameter.
    """
    parts: dict[str, list[tuple[str, str | None, torch.Tensor]]] = defaultdict(list)
    for piece, tensor in zip(layer.pieces, pieces, strict=True):
        parts[piece.parameter].append((piece.key_of(index), piece.pattern, tensor))
    converted = {}
    for name, shape in layer.parameters.items():
        tensor = architecture.convert(f"{layer.name}.{name}", parts[name])
        if tensor.shape == (1, *shape):  # the axis of experts, of whom there is one here
            tensor = tensor[0]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{layer.name}.{name}: an expert's part has the shape {list(tensor.shape)}, "
                f"but config.json says {list(shape)}"
            )
        converted[name] = tensor
    return converted


def piece_places(architecture: Architecture, layer: MoeLayer) -> tuple[int, ...] | None:
    """Where each piece's bytes stand within its parameter, if converting leaves pieces whole.

    Returns:
        For each of ``layer.pieces`` the offset in bytes within the parameter; None if the converter rearranges them.

    Raises:
        CheckpointError: As `convert_expert`.
    """
    signature = tuple((piece.spec, piece.parameter, piece.pattern) for piece in layer.pieces)
    with _LOCK:
        known = _PLACES.setdefault(architecture, {})
        if signature not in known:
            known[signature] = _find_places(architecture, layer)
        return known[signature]


def _find_places(architecture: Architecture, layer: MoeLayer) -> tuple[int, ...] | None:
    """Convert noise, and look for each piece at the places where it can stand."""
    generator = torch.Generator().manual_seed(0)
    noise = []
    for piece in layer.pieces:
        buffer = aligned_buffer(piece.spec.size_bytes)
        buffer.random_(generator=generator)
        noise.append(view_as(buffer, piece.spec))
    converted = convert_expert(architecture, layer, 0, noise)
    places = [0] * len(layer.pieces)
    for name, tensor in converted.items():
        if not tensor.is_contiguous():
            return None
        whole = bytes_of(tensor)
        # Stacking and concatenating along rows keeps the pieces whole, in some order.
        left = [number for number, piece in enumerate(layer.pieces) if piece.parameter == name]
        at = 0
        while left:
            fits = [n for n in left if whole[at : at + layer.pieces[n].spec.size_bytes] == bytes_of(noise[n])]
            if len(fits) != 1:
                return None
            places[fits[0]] = at
            at += layer.pieces[fits[0]].spec.size_bytes
            left.remove(fits[0])
    return tuple(places)
