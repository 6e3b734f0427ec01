"""A model ready to serve: the trunk with its MoE layers bound, the tokenizer, and what the engine must know of them."""

from __future__ import annotations

import inspect
import logging
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from meshmoe.core.errors import CheckpointError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.cache import CacheTraits, new_cache, probe_cache
from meshmoe.engine.experts import bind_experts
from meshmoe.engine.kernels.choice import UnsupportedModelError, compiled
from meshmoe.model.experts_modules import ExpertsModule
from meshmoe.model.loading import load_trunk
from meshmoe.model.source import WeightSource

if TYPE_CHECKING:
    from meshmoe.engine.cuda.weights import DeviceWeights
    from meshmoe.engine.lean.model import LeanModel

_log = logging.getLogger(__name__)

Decode = Literal["auto", "lean", "generic"]


@dataclass(frozen=True, slots=True)
class MoeModel:
    """The part of a model that every node holds. Read-only after loading, so several engines may share it.

    Attributes:
        trunk: The stock causal language model without routed experts.
        tokenizer: Its transformers tokenizer.
        config: Its transformers configuration (of the text model).
        layers: The MoE layers, by ordinal.
        experts: All routed experts, layer by layer.
        dtype: What trunk and experts compute in.
        context_length: Tokens of prompt and answer together, at most.
        eos_ids: Tokens that end a text.
        cache: How its key-value cache behaves.
        expert_bytes: Size of an expert in memory, by layer ordinal.
        lean: What forwards are computed with; None for the trunk itself.
        card: The trunk on an NVIDIA card, where forwards are computed then; None for the host.
    """

    trunk: nn.Module
    tokenizer: Any
    config: Any
    layers: tuple[ExpertsModule, ...]
    experts: tuple[ExpertId, ...]
    dtype: torch.dtype
    context_length: int
    eos_ids: frozenset[int]
    cache: CacheTraits
    expert_bytes: tuple[int, ...]
    lean: LeanModel | None
    card: DeviceWeights | None
    _options: dict[str, Any]
    _takes_positions: bool

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that the model can read."""
        return int(self.trunk.get_input_embeddings().num_embeddings)  # type: ignore[operator]

    def new_cache(self) -> Any:
        """An empty cache for one request; None where the model makes its own in its first pass."""
        return new_cache(self.config, self.cache)

    def forward(self, ids: list[int], position: int, cache: Any) -> tuple[Tensor, Any]:
        """Read tokens, on the thread of the caller, under the `current_runner` of its context.

        Args:
            ids: The tokens.
            position: How many tokens were read before. Said here and not left to the model, because a cache whose
                first layer is recurrent does not know (minimax counts from 0 again).
            cache: What was read before; grows by ``ids``.

        Returns:
            The last token's logits, ``[V]`` in the model's dtype, and the cache.
        """
        options = dict(self._options)
        if self._takes_positions:
            options["position_ids"] = torch.arange(position, position + len(ids)).unsqueeze(0)
        out = self.trunk(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, **options)
        return out.logits[0, -1], out.past_key_values


def load_moe_model(
    source: WeightSource, dtype: torch.dtype | None = None, decode: Decode = "auto", device: torch.device | None = None
) -> MoeModel:
    """Load the trunk and the tokenizer, and bind the MoE layers.

    Args:
        source: A checkpoint, or a node's store with the trunk in it.
        dtype: To compute in; None for the checkpoint's own.
        decode: Whether decode steps take the lean path: ``auto`` where it knows the family.
        device: A card to compute on; None for the host.

    Raises:
        CheckpointError: Something is missing, damaged, or of no use; or ``lean`` was asked for and cannot be had.
    """
    dtype = dtype or source.dtype
    trunk = load_trunk(source, dtype)
    layers = bind_experts(trunk)
    try:
        # One text at a time needs no threads. Those of tokenizers' own pool would begin with the first request, and if
        # there is no memory for them then, the library panics.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer = AutoTokenizer.from_pretrained(source.directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"{source.directory}: the tokenizer cannot be loaded: {error}") from error
    accepted = inspect.signature(trunk.forward).parameters
    cache = probe_cache(trunk, trunk.config)
    lean = _lean_model(trunk, source, layers, cache, decode if device is None else "lean")
    return MoeModel(
        trunk=trunk,
        tokenizer=tokenizer,
        config=source.config,
        layers=layers,
        experts=tuple(ExpertId(layer.layer, index) for layer in layers for index in range(layer.n_experts)),
        dtype=dtype,
        context_length=source.context_length,
        eos_ids=_eos_ids(trunk, tokenizer),
        cache=cache,
        expert_bytes=tuple(
            sum(math.prod(shape) for shape in layer.parameters.values()) * dtype.itemsize for layer in source.layers
        ),
        lean=lean,
        card=None if device is None else _on_card(trunk, source, device),
        _options={"logits_to_keep": 1} if "logits_to_keep" in accepted else {},
        _takes_positions="position_ids" in accepted,
    )


def _lean_model(
    trunk: nn.Module, source: WeightSource, layers: tuple[ExpertsModule, ...], cache: CacheTraits, decode: Decode
) -> LeanModel | None:
    if decode == "generic":
        return None
    try:
        if not compiled():
            raise UnsupportedModelError("compiled kernels are not available on this machine")
        from meshmoe.engine.lean.model import LeanModel  # needs numba

        lean = LeanModel.of(trunk, layers, cache)
    except UnsupportedModelError as error:
        if decode == "lean":
            raise CheckpointError(f"{source.directory}: no lean decoding: {error}; use generic or auto") from error
        _log.info("decode steps take the generic path: %s", error)
        return None
    lean.warm()
    return lean


def _on_card(trunk: nn.Module, source: WeightSource, device: torch.device) -> DeviceWeights:
    if not torch.cuda.is_available():
        raise CheckpointError("this machine has no NVIDIA card that torch can use: leave --device away, or say cpu")
    from meshmoe.engine.cuda.weights import read_weights  # needs Triton, which comes with CUDA's torch

    try:
        return read_weights(trunk, device)
    except ValueError as error:
        raise CheckpointError(f"{source.directory}: no computing on a card: {error}; use --device cpu") from error


def _eos_ids(trunk: Any, tokenizer: Any) -> frozenset[int]:
    """As ``generate`` has them: the generation configuration's, else the tokenizer's."""
    named = trunk.generation_config.eos_token_id
    if named is None:
        named = tokenizer.eos_token_id
    if named is None:
        return frozenset()
    return frozenset(named) if isinstance(named, (list, tuple)) else frozenset([int(named)])
