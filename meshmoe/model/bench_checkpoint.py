"""Large random checkpoints for measuring kernels and memory, written shard by shard.

The weights mean nothing, but hidden states keep their scale and routing is spread over the experts, so time and memory
are those of a real model of the shape. The family is ``qwen3_moe``.

Drawing takes longer than writing, so several shards are drawn at once: as many as there are processors, and as a
quarter of the free memory has room for. Each has a seed of its own, so how many they are changes no byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig

from meshmoe.core.errors import CapacityError
from meshmoe.core.units import format_size
from meshmoe.model.source import Progress
from meshmoe.model.tensor_files import INDEX_FILE, SINGLE_FILE
from meshmoe.model.tiny import byte_tokenizer
from meshmoe.model.unit_names import MODEL_FILES

_WEIGHT_GAIN = 0.6
_ROUTER_GAIN = 3.0

_SHARDS_MAX = 1 << 16
"""So that no two seeds have a shard in common."""


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
        tied: Whether the head is the embedding.
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
    tied: bool = True
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
            tie_word_embeddings=self.tied,
            max_position_embeddings=self.context,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            dtype=self.dtype,
        )

    @property
    def layer_bytes(self) -> int:
        """Of one layer, without its norms."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        experts = self.experts * self.hidden * (3 * self.expert_width + 1)
        return (attention + experts) * self.dtype.itemsize

    @property
    def model_bytes(self) -> int:
        """Of all matrices; norms, tokenizer and the files' headers come to a thousandth of that."""
        ends = (1 if self.tied else 2) * self.vocab * self.hidden * self.dtype.itemsize
        return self.layers * self.layer_bytes + ends


BENCH_1_7B = BenchShape()

QWEN3_30B_A3B = BenchShape(
    hidden=2048, layers=48, heads=32, kv_heads=4, head_dim=128, experts=128, top_k=8, expert_width=768,
    vocab=151_936, context=40_960, tied=False,
)  # fmt: skip
"""The shape of Qwen3-30B-A3B, from its published configuration; 57 GiB in bfloat16."""

BENCH_SHAPES = {"bench-1.7b": BENCH_1_7B, "qwen3-30b": QWEN3_30B_A3B}
"""By the names that `meshmoe bench make-model` takes."""


def make_bench_checkpoint(
    directory: Path,
    shape: BenchShape = BENCH_1_7B,
    *,
    seed: int = 0,
    tokenizer_from: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a random model, one shard a layer, with no more layers in memory than a quarter of it has room for.

    Args:
        directory: Created if need be.
        shape: Sizes of the model.
        seed: Of the weights: the same seed gives the same files.
        tokenizer_from: A checkpoint whose tokenizer files are copied; None for one token a byte.
        progress: Told the bytes written so far.

    Returns:
        ``directory``.

    Raises:
        CapacityError: The disk has no room for it; nothing is written then.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _check_room(directory, shape)
    shape.config().save_pretrained(directory)
    if tokenizer_from is None:
        byte_tokenizer().save_pretrained(directory)
    else:
        for name in sorted(MODEL_FILES - {"config.json"}):
            if (tokenizer_from / name).is_file():
                shutil.copyfile(tokenizer_from / name, directory / name)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    stem = SINGLE_FILE.removesuffix(".safetensors")

    def write(number: int) -> tuple[str, list[str], int]:
        generator = torch.Generator().manual_seed(seed * _SHARDS_MAX + number)
        tensors = _shard(shape, number, generator)
        name = f"{stem}-{number + 1:05d}-of-{shape.layers + 1:05d}.safetensors"
        save_file(tensors, directory / name, metadata={"format": "pt"})
        return name, list(tensors), sum(tensor.nbytes for tensor in tensors.values())

    with _one_thread_each(), ThreadPoolExecutor(_shards_at_once(shape)) as pool:
        for done in as_completed([pool.submit(write, number) for number in range(shape.layers + 1)]):
            name, keys, size_bytes = done.result()
            weight_map.update(dict.fromkeys(keys, name))
            total_bytes += size_bytes
            if progress is not None:
                progress(total_bytes)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=1, sort_keys=True))
    return directory


def _check_room(directory: Path, shape: BenchShape) -> None:
    free_bytes, needed_bytes = shutil.disk_usage(directory).free, shape.model_bytes + shape.model_bytes // 1000
    if needed_bytes > free_bytes:
        raise CapacityError(
            f"{directory} has {format_size(free_bytes)} free, and the model takes {format_size(needed_bytes)}: make "
            f"{format_size(needed_bytes - free_bytes)} free, or give another directory"
        )


def _shards_at_once(shape: BenchShape) -> int:
    room = psutil.virtual_memory().available // 4 // shape.layer_bytes
    return int(max(1, min(len(os.sched_getaffinity(0)), room)))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Have torch start no threads of its own below those that draw."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _shard(shape: BenchShape, number: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A layer's tensors; behind the last layer those of embedding, norm and head."""

    def matrix(rows: int, columns: int, gain: float = _WEIGHT_GAIN) -> torch.Tensor:
        noise = torch.randn(rows, columns, generator=generator)
        return noise.mul_(gain / columns**0.5).to(shape.dtype)

    def ones(width: int) -> torch.Tensor:
        return torch.ones(width, dtype=shape.dtype)

    if number == shape.layers:
        ends = {
            "model.embed_tokens.weight": matrix(shape.vocab, shape.hidden),
            "model.norm.weight": ones(shape.hidden),
        }
        return ends if shape.tied else ends | {"lm_head.weight": matrix(shape.vocab, shape.hidden)}
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    at = f"model.layers.{number}"
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
    return tensors
