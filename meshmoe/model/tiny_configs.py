"""Configurations of tiny random models, one for each transformers family that meshmoe is tried with.

Everything is as small as the family allows (hidden size 64, two to four layers, eight experts), and every peculiarity
is kept: dense first layers, shared experts, grouped routing, latent attention, state-space layers, biases, fused
tensors.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

TINY_VOCAB = 288
"""256 bytes, three special tokens, and some that no text encodes to."""

_HIDDEN: dict[str, Any] = {
    "vocab_size": TINY_VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
_LOCAL = {"intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2}
_NAMED = {"moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2}
_ROUTED = {"intermediate_size": 96, "moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 2}
_GROUPED = {**_ROUTED, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
_SHARED = {"shared_expert_intermediate_size": 40}
_DELTA_NET = {
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_hidden_layers": 4,
}

_FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": _LOCAL,
    "qwen2_moe": {**_NAMED, **_SHARED, "intermediate_size": 96},
    "qwen3_moe": {**_NAMED, "intermediate_size": 96, "head_dim": 16, "norm_topk_prob": True},
    "olmoe": {"intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v2": {
        **_LATENT,
        **_GROUPED,
        "n_shared_experts": 1,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 1.5,
    },
    "deepseek_v3": {**_LATENT, **_GROUPED, "n_shared_experts": 1, "routed_scaling_factor": 1.5},
    "gpt_oss": {**_LOCAL, "head_dim": 16, "sliding_window": 16},
    "phimoe": _LOCAL,
    "granitemoe": {**_LOCAL, "residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 6.0},
    "granitemoeshared": {**_LOCAL, "shared_intermediate_size": 40, "residual_multiplier": 0.22},
    "granitemoehybrid": {
        **_LOCAL,
        "shared_intermediate_size": 40,
        "residual_multiplier": 0.22,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_expand": 2,
    },
    "qwen3_next": {**_NAMED, **_SHARED, **_DELTA_NET, "intermediate_size": 96},
    "qwen3_5_moe_text": {**_NAMED, **_SHARED, **_DELTA_NET},
    "ernie4_5_moe": {
        "intermediate_size": 96,
        "moe_intermediate_size": 48,
        "moe_num_experts": 8,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "glm4_moe": {**_GROUPED, "head_dim": 16},
    "glm4_moe_lite": {**_LATENT, **_ROUTED, "n_shared_experts": 1, "n_group": 2, "topk_group": 1},
    "minimax": {
        **_LOCAL,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "block_size": 8,
    },
    "minimax_m2": {**_LOCAL, "head_dim": 16, "rotary_dim": 8},
    "hunyuan_v1_moe": {"intermediate_size": 48, "num_experts": 8, "moe_topk": [2] * 3, "head_dim": 16},
    "dots1": {**_GROUPED, "n_shared_experts": 1, "head_dim": 16},
    "jamba": {
        "intermediate_size": 48,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
    },
    "lfm2_moe": {
        **_NAMED,
        "intermediate_size": 96,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "flex_olmo": {"intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2},
    "exaone_moe": {
        **_NAMED,
        "intermediate_size": 96,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "head_dim": 16,
        "sliding_window": 16,
    },
    "nemotron_h": {
        **_ROUTED,
        "moe_shared_expert_intermediate_size": 40,
        "n_group": 1,
        "topk_group": 1,
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "num_hidden_layers": 4,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "head_dim": 16,
    },
    "gemma4_text": {
        "intermediate_size": 96,
        "moe_intermediate_size": 48,
        "num_experts": 8,
        "top_k_experts": 2,
        "enable_moe_block": True,
        "head_dim": 16,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": TINY_VOCAB,
        "num_kv_shared_layers": 0,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "longcat_flash": {
        **_LATENT,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 48,
        "num_layers": 2,
        "n_routed_experts": 8,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "head_dim": 8,
        "num_hidden_layers": 2,
    },
    "llama4_text": {
        "intermediate_size": 48,
        "intermediate_size_mlp": 96,
        "num_local_experts": 8,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "head_dim": 16,
        "attention_chunk_size": 64,
    },
}

TINY_FAMILIES: tuple[str, ...] = (*_FAMILIES, "dbrx")
"""transformers model types for which ``tiny_config`` has a configuration."""


def tiny_config(family: str) -> Any:
    """Make the configuration of a tiny model.

    Args:
        family: One of ``TINY_FAMILIES``.

    Returns:
        A transformers configuration.
    """
    if family == "dbrx":  # names nearly everything differently
        return AutoConfig.for_model(
            "dbrx",
            d_model=64,
            n_heads=4,
            n_layers=3,
            max_seq_len=512,
            vocab_size=TINY_VOCAB,
            attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            ffn_config={"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 2},
        )
    return AutoConfig.for_model(family, **{**_HIDDEN, **_FAMILIES[family]})
