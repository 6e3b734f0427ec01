"""Decoding on a card: the CUDA step beside stock transformers, on a model of random weights made there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import msgspec
import torch

from meshmoe.bench_engine.turns import Progress, in_turns
from meshmoe.core.errors import ConfigError
from meshmoe.engine.lean.attention import BLOCK_TOKENS
from meshmoe.model.bench_checkpoint import QWEN3_30B_A3B

CONTEXT = 128
"""Position of the first token that is timed."""

STEPS = 20

GENERATED = 32
"""Tokens that transformers' ``generate`` writes after as many of a prompt."""


class CudaFigure(msgspec.Struct, frozen=True):
    """What a card reached.

    Attributes:
        device: Its name.
        streams: Requests at once.
        ours: Tokens a second of all streams, median.
        stock: The same of transformers, with its grouped experts: its forwards, one after the other.
        generate: The same of its ``generate``, from short prompts on, which it reads as well.
        roofline: Tokens a second of one stream, if nothing but reading its weights took time.
    """

    device: str
    streams: int
    ours: float
    stock: float
    generate: float
    roofline: float


def measure_cuda(streams: tuple[int, ...], layers: int, turns: int, progress: Progress) -> list[CudaFigure]:
    """Measure decode steps of Qwen3-30B-A3B's shape, all experts resident, greedy.

    Args:
        streams: Numbers of requests at once.
        layers: Of the model; 48 are the whole one.
        turns: Of which the median is taken.
        progress: Told what is going on.

    Raises:
        ConfigError: There is no card.
    """
    if not torch.cuda.is_available():
        raise ConfigError("meshmoe bench cuda needs an NVIDIA card and torch with CUDA; this machine has none")
    from meshmoe.engine.cuda.weights import lend_experts, read_weights

    torch.set_grad_enabled(False)
    progress("making a model of random weights")
    stock = _random_model(layers)
    weights = read_weights(stock, torch.device("cuda"))
    lend_experts(weights, stock)
    read_s = _token_bytes(stock) / _read_rate()
    figures = []
    for count in streams:
        progress(f"{count} streams")
        ways = {
            "ours": _ours(weights, count),
            "stock": _stock(stock, count),
            "generate": _generate(stock, count),
        }
        rates = in_turns(ways, turns)
        figures.append(
            CudaFigure(
                device=torch.cuda.get_device_name(),
                streams=count,
                ours=rates["ours"],
                stock=rates["stock"],
                generate=rates["generate"],
                roofline=1 / read_s,
            )
        )
    return figures


def cuda_table(figures: list[CudaFigure]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| device | streams | ours, tok/s | transformers, tok/s | ratio | its generate, tok/s | ours / roofline |",
        "|---" * 7 + "|",
    ]
    for f in figures:
        share = f"{f.ours / f.roofline:.2f}" if f.streams == 1 else ""
        lines.append(
            f"| {f.device} | {f.streams} | {f.ours:,.0f} | {f.stock:,.1f} | {f.ours / f.stock:.1f} "
            f"| {f.generate:,.1f} | {share} |"
        )
    return "\n".join(lines)


def _random_model(layers: int) -> Any:
    from transformers import Qwen3MoeForCausalLM

    config = dataclasses.replace(QWEN3_30B_A3B, layers=layers).config()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model: Any = Qwen3MoeForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator("cuda").manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.02, generator=generator)
    model.set_experts_implementation("grouped_mm")
    return model.eval()


def _ours(weights: Any, count: int) -> Callable[[], float]:
    from meshmoe.engine.cuda.blocks import DeviceBlocks
    from meshmoe.engine.cuda.step import DecodeStep
    from meshmoe.engine.lean.blocks import Sequence

    reach = -(-(CONTEXT + STEPS) // BLOCK_TOKENS) * BLOCK_TOKENS
    blocks = DeviceBlocks(weights, 8 << 30)
    step = DecodeStep(weights, blocks, count, reach)
    for row in range(count):
        sequence = Sequence(blocks)
        sequence.reserve(reach)
        used = reach // BLOCK_TOKENS
        step.tables[row] = torch.from_numpy(sequence.table[:used])

    def run() -> float:
        step.tokens.copy_(torch.arange(100, 100 + count))
        torch.cuda.synchronize()
        began = perf_counter()
        for at in range(STEPS):
            step.positions.fill_(CONTEXT + at)
            assert step.run() is None
            step.tokens.copy_(step.logits.argmax(-1))
        torch.cuda.synchronize()
        return STEPS * count / (perf_counter() - began)

    return run


def _stock(model: Any, count: int) -> Callable[[], float]:
    from transformers import DynamicCache

    def run() -> float:
        cache = DynamicCache(config=model.config)
        ids = torch.randint(0, 1000, (count, CONTEXT), device="cuda")
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        torch.cuda.synchronize()
        began = perf_counter()
        for _ in range(STEPS):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
        torch.cuda.synchronize()
        return STEPS * count / (perf_counter() - began)

    return run


def _generate(model: Any, count: int) -> Callable[[], float]:
    def run() -> float:
        ids = torch.randint(3, 1000, (count, GENERATED), device="cuda")
        torch.cuda.synchronize()
        began = perf_counter()
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=GENERATED,
            min_new_tokens=GENERATED,
            do_sample=False,
        )
        torch.cuda.synchronize()
        return int(written.shape[1] - GENERATED) * count / (perf_counter() - began)

    return run


def _read_rate() -> float:
    """Bytes a second that the card reads, from copies of 2 GiB: a copy reads as much as it writes."""
    one = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    found = []
    for _ in range(6):
        torch.cuda.synchronize()
        began = perf_counter()
        other.copy_(one)
        torch.cuda.synchronize()
        found.append(2 * one.nbytes / (perf_counter() - began))
    return median(found[1:])


def _token_bytes(model: Any) -> int:
    config = model.config
    experts = config.num_hidden_layers * config.num_experts_per_tok * 3 * config.moe_intermediate_size
    stacks = ("gate_up_proj", "down_proj")
    rest = sum(p.nbytes for n, p in model.named_parameters() if not n.endswith(stacks) and "embed_tokens" not in n)
    return int(rest + experts * config.hidden_size * 2)
