"""Large random checkpoints for measuring kernels and memory, written a shard at a time.

The weights mean nothing, but hidden states keep their scale and routing is spread over the experts, so time and memory
are those of a real model of the shape. The family is ``qwen3_moe``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig

from meshmoe.model.source import Progress
from meshmoe.model.tensor_files import INDEX_FILE, SINGLE_FILE
from meshmoe.model.tiny import byte_tokenizer
from meshmoe.model.unit_names import MODEL_FILES

_WEIGHT_GAIN = 0.6
_ROUTER_GAIN = 3.0


@dataclass(frozen=True, slots=True)
class BenchShape:
    """Sizes of a model; the defaults are bench-1.7b (DESIGN.md, section 8): 1.67 G parameters, 3.1 GiB in bfloat16.

    Attributes:
        hidden: Width of the hidden state.
        layers: All with experts.
        heads: Of queries.
        kv_heads: Of keys and values.
        head_dim: Width of a head.
        experts: In each layer.
        top_k: Experts a token is routed to.
        expert_width: Width between up and down projection.
        vocab: Tokens; at least 288 unless a tokenizer is given.
        context: Longest sequence.
        dtype: Of the weights.
    """

    hidden: int = 1024
    layers: int = 16
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 64
    experts: int = 64
    top_k: int = 8
    expert_width: int = 512
    vocab: int = 4096
    context: int = 4096
    dtype: torch.dtype = torch.bfloat16

    def config(self) -> Any:
        """The same as a transformers configuration."""
        config_class: Any = Qwen3MoeConfig
        return config_class(
            architectures=["Qwen3MoeForCausalLM"],
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=2 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            num_experts=self.experts,
            num_experts_per_tok=self.top_k,
            moe_intermediate_size=self.expert_width,
            norm_topk_prob=True,
            tie_word_embeddings=True,
            max_position_embeddings=self.context,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            dtype=self.dtype,
        )


BENCH_1_7B = BenchShape()


def make_bench_checkpoint(
    directory: Path,
    shape: BenchShape = BENCH_1_7B,
    *,
    seed: int = 0,
    tokenizer_from: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a random model, one shard a layer, with one layer in memory at a time.

    Args:
        directory: Created if need be.
        shape: Sizes of the model.
        seed: Of the weights: the same seed gives the same files.
        tokenizer_from: A checkpoint whose tokenizer files are copied; None for one token a byte.
        progress: Told the bytes written so far.

    Returns:
        ``directory``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shape.config().save_pretrained(directory)
    if tokenizer_from is None:
        byte_tokenizer().save_pretrained(directory)
    else:
        for name in sorted(MODEL_FILES - {"config.json"}):
            if (tokenizer_from / name).is_file():
                shutil.copyfile(tokenizer_from / name, directory / name)
    generator = torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    stem = SINGLE_FILE.removesuffix(".safetensors")
    for number, tensors in enumerate(_shards(shape, generator), 1):
        name = f"{stem}-{number:05d}-of-{shape.layers + 1:05d}.safetensors"
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        tensors.clear()  # or two layers are in memory while the next is drawn
        if progress is not None:
            progress(total_bytes)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=1, sort_keys=True))
    return directory


def _shards(shape: BenchShape, generator: torch.Generator) -> Iterator[dict[str, torch.Tensor]]:
    def matrix(rows: int, columns: int, gain: float = _WEIGHT_GAIN) -> torch.Tensor:
        noise = torch.randn(rows, columns, generator=generator)
        return noise.mul_(gain / columns**0.5).to(shape.dtype)

    def ones(width: int) -> torch.Tensor:
        return torch.ones(width, dtype=shape.dtype)

    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        tensors = {
            f"{at}.input_layernorm.weight": ones(shape.hidden),
            f"{at}.post_attention_layernorm.weight": ones(shape.hidden),
            f"{at}.self_attn.q_proj.weight": matrix(queries, shape.hidden),
            f"{at}.self_attn.k_proj.weight": matrix(keys, shape.hidden),
            f"{at}.self_attn.v_proj.weight": matrix(keys, shape.hidden),
            f"{at}.self_attn.o_proj.weight": matrix(shape.hidden, queries),
            f"{at}.self_attn.q_norm.weight": ones(shape.head_dim),
            f"{at}.self_attn.k_norm.weight": ones(shape.head_dim),
            f"{at}.mlp.gate.weight": matrix(shape.experts, shape.hidden, _ROUTER_GAIN * _WEIGHT_GAIN),
        }
        for expert in range(shape.experts):
            tensors[f"{at}.mlp.experts.{expert}.gate_proj.weight"] = matrix(shape.expert_width, shape.hidden)
            tensors[f"{at}.mlp.experts.{expert}.up_proj.weight"] = matrix(shape.expert_width, shape.hidden)
            tensors[f"{at}.mlp.experts.{expert}.down_proj.weight"] = matrix(shape.hidden, shape.expert_width)
        yield tensors
    yield {"model.embed_tokens.weight": matrix(shape.vocab, shape.hidden), "model.norm.weight": ones(shape.hidden)}
