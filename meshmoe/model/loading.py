"""From stored bytes to modules and tensors: the trunk as a stock transformers model, experts one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from meshmoe.core.errors import CheckpointError
from meshmoe.core.ids import ExpertId
from meshmoe.model.architecture import BUILD_LOCK, quiet_transformers
from meshmoe.model.assembly import convert_expert, piece_places
from meshmoe.model.config_file import brief
from meshmoe.model.experts_modules import ExpertWeights, strip_experts
from meshmoe.model.source import Progress, WeightSource
from meshmoe.model.tensors import (
    ALIGNMENT_BYTES,
    DTYPE_CODES,
    TensorSpec,
    aligned_buffer,
    aligned_views,
    bytes_of,
    view_as,
)
from meshmoe.model.unit_names import new_digest


def load_trunk(
    source: WeightSource,
    dtype: torch.dtype | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
    *,
    attn_implementation: str | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Load everything but the routed experts: the stock causal language model with its experts stripped.

    ``from_pretrained`` does the work, on a subclass whose constructor drops the experts' parameters and with a state
    dict that reads a tensor when it is asked for. So dtypes, tied weights, buffers and generation settings are as in
    the stock model, and memory is the trunk's only. While it runs, transformers changes torch's default dtype
    for the whole process: load the trunk before other threads compute.

    Args:
        source: A checkpoint or a partial store that has the trunk.
        dtype: To compute in; None for the checkpoint's own.
        prepare: Called with the model before it is returned, to install an experts implementation.
        attn_implementation: As in ``from_pretrained``; None for transformers' default.
        progress: Told the bytes read so far, on transformers' loading threads, one at a time.

    Returns:
        The model in evaluation mode; every parameter is in private, 64-byte aligned memory.

    Raises:
        CheckpointError: Trunk tensors are missing or do not fit the configuration, or cannot be read.
    """
    stock: Any = source.architecture.model_class

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        strip_experts(self)

    # The name and module stay, because transformers looks up the conversion mapping by them.
    trunk_class: Any = type(stock.__name__, (stock,), {"__init__": init, "__module__": stock.__module__})
    reader = _TrunkReader(source, progress)
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with BUILD_LOCK, quiet_transformers():
        try:
            model, info = trunk_class.from_pretrained(
                None,
                config=source.config,
                state_dict={key: _LazyTensor(reader, key) for key in source.layout.trunk},
                dtype=dtype or source.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
                **options,
            )
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{source.directory}: the trunk cannot be loaded: {brief(error)}") from error
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"{source.directory}: {name} has the shape {list(stored)}, but config.json says {list(wanted)}; "
            "the files do not belong together"
        )
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{source.directory}: tensors for {missing[0]}{more} are missing; the checkpoint is incomplete"
        )
    model.generation_config = _generation_config(source)
    _align(model)
    if prepare is not None:
        prepare(model)
    loaded: nn.Module = model
    return loaded


def load_expert(
    source: WeightSource, expert: ExpertId, dtype: torch.dtype | None = None, *, verify: bool = False
) -> ExpertWeights:
    """Load one expert in the layout that the model computes with.

    Args:
        source: A checkpoint or a partial store.
        expert: Which one.
        dtype: To compute in; None for the checkpoint's own.
        verify: Check the unit's digest first; a partial store always does.

    Returns:
        Tensors by parameter name (``gate_up_proj``, ``down_proj``, biases), without the expert axis, contiguous, in
        fresh memory of the expert's own and 64-byte aligned: results do not depend on where an expert was loaded.

    Raises:
        CheckpointError: It is not here, damaged, or cannot be read; or ``verify`` was asked for before the digests
            were computed.
    """
    layer = source.layout.layer_of(expert)
    wanted = source.expert_digest(expert) if verify else None
    if verify and wanted is None:
        raise CheckpointError(f"{source.directory}: digests are not known yet; compute the manifest first")
    target = dtype or source.dtype
    specs = [TensorSpec(DTYPE_CODES[target], shape) for shape in layer.parameters.values()]
    weights: ExpertWeights = dict(zip(layer.parameters, aligned_views(specs), strict=True))
    places = piece_places(source.architecture, layer)
    if places is not None and all(piece.spec.torch_dtype == target for piece in layer.pieces):
        stored: list[torch.Tensor] = []
        flat = {name: bytes_of(tensor) for name, tensor in weights.items()}
        outs = [
            flat[piece.parameter][at : at + piece.spec.size_bytes]
            for piece, at in zip(layer.pieces, places, strict=True)
        ]
    else:
        stored = [view_as(aligned_buffer(piece.spec.size_bytes), piece.spec) for piece in layer.pieces]
        outs = [bytes_of(tensor) for tensor in stored]
    source.read_expert_into(expert, outs)
    if wanted is not None:
        _verify(source, expert, outs, wanted)
    if stored:
        for name, tensor in convert_expert(source.architecture, layer, expert.index, stored).items():
            weights[name].copy_(tensor)
    return weights


def _verify(source: WeightSource, expert: ExpertId, pieces: list[memoryview], wanted: bytes) -> None:
    state = new_digest()
    for piece in pieces:
        state.update(piece)
    if state.digest() != wanted:
        raise CheckpointError(f"{source.directory}: expert {expert} is damaged; restore the checkpoint")


class _TrunkReader:
    """Reads trunk tensors and counts."""

    def __init__(self, source: WeightSource, progress: Progress | None) -> None:
        self._source, self._progress = source, progress
        self._lock = threading.Lock()
        self._done_bytes = 0

    def read(self, key: str) -> torch.Tensor:
        tensor = self._source.read_trunk_tensor(key)
        if self._progress is not None:
            with self._lock:
                self._done_bytes += tensor.nbytes
                self._progress(self._done_bytes)
        return tensor


class _LazyTensor:
    """What ``from_pretrained`` takes for a tensor: ``[...]`` reads it."""

    def __init__(self, reader: _TrunkReader, key: str) -> None:
        self._reader, self._key = reader, key

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._reader.read(self._key)[index]


def _generation_config(source: WeightSource) -> GenerationConfig:
    """As ``from_pretrained`` does for a directory: generation_config.json, else what config.json says."""
    try:
        return GenerationConfig.from_pretrained(source.directory, local_files_only=True)
    except OSError:
        return GenerationConfig.from_pretrained(
            source.directory, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )


def _align(model: nn.Module) -> None:
    """Give parameters that a converter cut out of a larger tensor an aligned memory of their own."""
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNMENT_BYTES or not parameter.is_contiguous():
            spec = TensorSpec(DTYPE_CODES[parameter.dtype], tuple(parameter.shape))
            (private,) = aligned_views([spec])
            parameter.data = private.copy_(parameter.data)
