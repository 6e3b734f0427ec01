"""What the compiled step must know of a model, read off the transformers modules; or why it cannot run it.

The tables point into the trunk's own parameters: nothing is copied, so the trunk must stay where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meshmoe.engine.cache import CacheTraits, GrowingLayer, new_cache
from meshmoe.engine.kernels.choice import UnsupportedModelError, is_plain
from meshmoe.engine.kernels.primitives import TAGS, Tag
from meshmoe.engine.lean.attention import Floats, Ints
from meshmoe.engine.lean.tables import End, Layer, Norm, Number, QkNorm, Router, Shape
from meshmoe.model.experts_modules import ExpertsModule


@dataclass(frozen=True, slots=True)
class LeanPlan:
    """A model as the compiled step sees it.

    Attributes:
        tag: Of the model's dtype.
        shape: See `tables`.
        numbers: See `tables`.
        layers: See `tables`.
        ends: See `tables`.
        embedding: ``[V, H]``.
        head: ``[V, H]``, of the logits.
        rotary: The trunk's module for position frequencies.
        switch_tokens: See `CacheTraits`.
        top_k: Experts a token is routed to, at most of all layers.
        widest: Of all widths between up and down projection.
    """

    tag: Tag
    shape: Ints
    numbers: Floats
    layers: Ints
    ends: Ints
    embedding: Tensor
    head: Tensor
    rotary: Any
    switch_tokens: int | None
    top_k: int
    widest: int


def make_plan(trunk: Any, experts: tuple[ExpertsModule, ...], traits: CacheTraits) -> LeanPlan:
    """Read a model's plan.

    Args:
        trunk: The stripped causal language model.
        experts: Its MoE layers.
        traits: Of its cache.

    Raises:
        UnsupportedModelError: The family is not known, or this model uses something that the compiled step lacks.
    """
    config = trunk.config
    family = _FAMILIES.get(config.model_type)
    _require(family is not None, f"family {config.model_type} is not known to it")
    assert family is not None
    dtype = trunk.get_input_embeddings().weight.dtype
    _require(dtype in TAGS, f"dtype {dtype}")
    _require(all(is_plain(layer.module) for layer in experts), "experts with another activation than SiLU")
    cache = new_cache(config, traits)
    _require(cache is not None and all(type(layer) is GrowingLayer for layer in cache.layers), "a windowed cache")
    model, block = trunk.model, trunk.model.layers[0]
    attention = block.self_attn
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
    shape, numbers = np.zeros(len(Shape), np.int64), np.zeros(len(Number), np.float32)
    shape[Shape.HIDDEN], shape[Shape.HEADS], shape[Shape.KV_HEADS] = config.hidden_size, heads, kv_heads
    shape[Shape.HEAD_DIM] = size
    shape[Shape.NORM] = Norm.LAYER if isinstance(model.norm, torch.nn.LayerNorm) else Norm.RMS
    numbers[Number.NORM_EPS] = config.rms_norm_eps
    numbers[Number.ATTENTION_SCALE] = attention.scaling
    numbers[Number.ROUTED_SCALE] = 1.0
    numbers[Number.CLIP_QKV] = getattr(config, "clip_qkv", None) or 0.0
    q_norm = getattr(attention, "q_norm", None)
    if q_norm is not None:
        shape[Shape.QK_NORM] = QkNorm.HEAD if q_norm.weight.shape[0] == size else QkNorm.WHOLE
        if config.model_type == "olmoe":
            shape[Shape.QK_NORM] = QkNorm.WHOLE
        numbers[Number.QK_NORM_EPS] = q_norm.variance_epsilon
    shape[Shape.ROTARY_DIM] = _rotary_dim(model, config)
    family(config, shape, numbers)
    ordinals = {id(layer.parent): layer for layer in experts}
    layers = np.stack([_layer(block, ordinals.get(id(block.mlp))) for block in model.layers])
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    _require(kind in _ROTARIES, f"position frequencies of kind {kind}, which change with every token of a text")
    embedding, head = _weight(model.embed_tokens.weight), _weight(trunk.lm_head.weight)
    ends = np.zeros(len(End), np.int64)
    ends[End.EMBEDDING], ends[End.HEAD], ends[End.VOCABULARY] = embedding.data_ptr(), head.data_ptr(), head.shape[0]
    ends[End.HEAD_BIAS], ends[End.NORM] = _address(trunk.lm_head, "bias"), _address(model.norm)
    ends[End.NORM_BIAS] = _address(model.norm, "bias")
    return LeanPlan(
        tag=TAGS[dtype],
        shape=shape,
        numbers=numbers,
        layers=layers,
        ends=ends,
        embedding=embedding,
        head=head,
        rotary=model.rotary_emb,
        switch_tokens=traits.switch_tokens,
        top_k=int(layers[:, Layer.TOP_K].max()),
        widest=int(layers[:, [Layer.WIDTH, Layer.DENSE_WIDTH]].max()),
    )


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise UnsupportedModelError(otherwise)


def _rotary_dim(model: Any, config: Any) -> int:
    hidden = torch.zeros(1, 1, config.hidden_size)
    cos, _ = model.rotary_emb(hidden, position_ids=torch.zeros(1, 1, dtype=torch.int64))
    return int(cos.shape[-1])


def _weight(tensor: Tensor) -> Tensor:
    _require(tensor.is_contiguous() and tensor.device.type == "cpu", "weights that are not plain memory")
    return tensor


def _address(owner: Any, name: str = "weight") -> int:
    tensor = getattr(owner, name, None)
    return 0 if tensor is None else _weight(tensor).data_ptr()


def _layer(block: Any, experts: ExpertsModule | None) -> Ints:
    row = np.zeros(len(Layer), np.int64)
    attention, mlp = block.self_attn, block.mlp
    _require(getattr(attention, "sliding_window", None) is None, "sliding windows")
    for owner, weight, bias in (
        (block.input_layernorm, Layer.IN_NORM, Layer.IN_NORM_BIAS),
        (block.post_attention_layernorm, Layer.POST_NORM, Layer.POST_NORM_BIAS),
        (attention.q_proj, Layer.Q, Layer.Q_BIAS),
        (attention.k_proj, Layer.K, Layer.K_BIAS),
        (attention.v_proj, Layer.V, Layer.V_BIAS),
        (attention.o_proj, Layer.O, Layer.O_BIAS),
    ):
        row[weight], row[bias] = _address(owner), _address(owner, "bias")
    row[Layer.Q_NORM] = _address(getattr(attention, "q_norm", None))
    row[Layer.K_NORM] = _address(getattr(attention, "k_norm", None))
    row[Layer.MOE] = -1
    dense = mlp
    if experts is not None:
        router = mlp.router if hasattr(mlp, "router") else mlp.gate
        row[Layer.MOE], row[Layer.EXPERTS] = experts.layer, experts.n_experts
        module: Any = experts.module
        row[Layer.TOP_K], row[Layer.WIDTH] = router.top_k, module.intermediate_dim
        row[Layer.ROUTER], row[Layer.CORRECTION] = _address(router), _address(router, "e_score_correction_bias")
        row[Layer.DENSE_MIX] = _address(getattr(mlp, "shared_expert_gate", None))
        dense = getattr(mlp, "shared_expert", None) or getattr(mlp, "shared_experts", None)
    if dense is not None:
        row[Layer.DENSE_GATE], row[Layer.DENSE_UP] = _address(dense.gate_proj), _address(dense.up_proj)
        row[Layer.DENSE_DOWN], row[Layer.DENSE_WIDTH] = _address(dense.down_proj), dense.down_proj.in_features
    return row


def _softmax(config: Any, shape: Ints, numbers: Floats) -> None:
    shape[Shape.ROUTER], shape[Shape.ROUND_WEIGHTS] = Router.SOFTMAX, 1
    shape[Shape.NORMALISE] = bool(config.norm_topk_prob)


def _mixtral(config: Any, shape: Ints, numbers: Floats) -> None:
    shape[Shape.ROUTER], shape[Shape.NORMALISE] = Router.SOFTMAX, 1


def _phimoe(config: Any, shape: Ints, numbers: Floats) -> None:
    shape[Shape.ROUTER], shape[Shape.ROUND_WEIGHTS] = Router.SPARSEMIXER, 1
    numbers[Number.JITTER] = config.router_jitter_noise


def _glm4(config: Any, shape: Ints, numbers: Floats) -> None:
    shape[Shape.ROUTER], shape[Shape.NORMALISE] = Router.SIGMOID_GROUPS, bool(config.norm_topk_prob)
    shape[Shape.GROUPS], shape[Shape.TOP_GROUPS] = config.n_group, config.topk_group
    numbers[Number.ROUTED_SCALE] = config.routed_scaling_factor


_FAMILIES: dict[str, Callable[[Any, Ints, Floats], None]] = {
    "qwen3_moe": _softmax,
    "qwen2_moe": _softmax,
    "olmoe": _softmax,
    "mixtral": _mixtral,
    "phimoe": _phimoe,
    "glm4_moe": _glm4,
}

_ROTARIES = ("default", "linear", "llama3", "yarn", "longrope")

FAMILIES = tuple(sorted(_FAMILIES))
"""Families that the lean path knows, by ``model_type``."""
