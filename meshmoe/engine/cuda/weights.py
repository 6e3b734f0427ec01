"""A model's weights as the decode step reads them, taken from transformers modules on a card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FAMILIES = ("qwen3_moe", "mixtral")
"""Families whose decode steps these kernels compute: RMS norms, rotary heads, a softmax router, no dense experts."""


@dataclass(frozen=True, slots=True)
class DeviceShape:
    """Numbers that hold for all layers; names as in `meshmoe.engine.lean.tables`."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    width: int
    vocabulary: int
    norm_eps: float
    normalise: bool
    round_weights: bool
    scale: float


@dataclass(frozen=True, slots=True)
class DeviceLayer:
    """A layer's attention and router.

    Attributes:
        in_norm, post_norm: ``[H]``.
        qkv: ``[(heads + 2 * kv heads) * d, H]``, queries above keys above values.
        q_norm, k_norm: ``[d]``, or None.
        o: ``[H, heads * d]``.
        router: ``[E, H]``.
    """

    in_norm: Tensor
    post_norm: Tensor
    qkv: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    router: Tensor


@dataclass(frozen=True, slots=True)
class DeviceWeights:
    """A model on a card.

    Attributes:
        shape: Its numbers.
        layers: Its layers.
        embedding, head: ``[V, H]``.
        norm: ``[H]``.
        rotary: The trunk's module for position frequencies.
        experts: ``[layers, E, 2]`` int64: where the gate-and-up projection ``[2 * I, H]`` and the down projection
            ``[H, I]`` of each expert lie on the card; 0 for what is not resident. Whoever writes addresses keeps the
            weights alive until the steps that read them are done.
    """

    shape: DeviceShape
    layers: tuple[DeviceLayer, ...]
    embedding: Tensor
    head: Tensor
    norm: Tensor
    rotary: Any
    experts: Tensor

    @property
    def device(self) -> torch.device:
        """The card."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and hidden states."""
        return self.embedding.dtype


def read_weights(trunk: Any, device: torch.device) -> DeviceWeights:
    """Read a causal language model of transformers; what is not on the card yet is copied there.

    Args:
        trunk: The model, with or without its experts; none of them is resident to begin with.
        device: The card.

    Raises:
        ValueError: The family is not one of `FAMILIES`, or uses what the kernels lack.
    """
    config = trunk.config
    if config.model_type not in FAMILIES:
        raise ValueError(f"family {config.model_type} is not known to the CUDA step; known: {', '.join(FAMILIES)}")
    model = trunk.model
    attention = model.layers[0].self_attn
    if any(p.bias is not None for p in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)):
        raise ValueError("attention with biases is not known to the CUDA step")
    experts = model.layers[0].mlp.experts
    shape = DeviceShape(
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        experts=experts.num_experts,
        top_k=config.num_experts_per_tok,
        width=experts.intermediate_dim,
        vocabulary=trunk.lm_head.weight.shape[0],
        norm_eps=config.rms_norm_eps,
        normalise=config.model_type == "mixtral" or bool(config.norm_topk_prob),
        round_weights=config.model_type == "qwen3_moe",
        scale=attention.scaling,
    )
    layers = []

    def there(module: Any) -> Tensor:
        found: Tensor = module.weight.data.to(device)
        return found

    for at, block in enumerate(model.layers):
        if not hasattr(block.mlp, "experts"):
            raise ValueError(f"layer {at} has no experts; dense layers are not known to the CUDA step")
        own = block.self_attn
        layers.append(
            DeviceLayer(
                in_norm=there(block.input_layernorm),
                post_norm=there(block.post_attention_layernorm),
                qkv=torch.cat([there(own.q_proj), there(own.k_proj), there(own.v_proj)]),
                q_norm=there(own.q_norm) if hasattr(own, "q_norm") else None,
                k_norm=there(own.k_norm) if hasattr(own, "k_norm") else None,
                o=there(own.o_proj),
                router=there(block.mlp.gate),
            )
        )
    return DeviceWeights(
        shape=shape,
        layers=tuple(layers),
        embedding=there(model.embed_tokens),
        head=there(trunk.lm_head),
        norm=there(model.norm),
        rotary=model.rotary_emb,
        experts=torch.zeros(len(layers), shape.experts, 2, dtype=torch.int64, device=device),
    )


def lend_experts(weights: DeviceWeights, trunk: Any) -> None:
    """Make all experts of a whole transformers model resident, where they lie in its own stacks."""
    addresses = [
        [(gate_up.data_ptr(), down.data_ptr()) for gate_up, down in zip(e.gate_up_proj, e.down_proj, strict=True)]
        for e in (block.mlp.experts for block in trunk.model.layers)
    ]
    weights.experts.copy_(torch.tensor(addresses))
