"""Decoding through the product's own generation loop: the lean path and the generic one in turns, and the roofline."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import msgspec
import torch
import trio

from meshmoe.bench_engine.bandwidth import readers
from meshmoe.bench_engine.turns import Progress
from meshmoe.engine.drafts.mode import OFF
from meshmoe.engine.engine import Engine, EngineLimits, open_engine
from meshmoe.engine.model import Decode, MoeModel, load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.request import FinishEvent, GenerationRequest, GenerationStats, SamplingParams, TokenEvent
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert


class DecodeFigure(msgspec.Struct, frozen=True):
    """What decoding reached, one request, all experts resident, one thread.

    Attributes:
        model: Name of the checkpoint's directory.
        dtype: Of the computation.
        tokens: Written in a turn of the lean path.
        context: Tokens of the prompt.
        lean: Tokens a second, median; None where the lean path does not know the family.
        generic: The same.
        token_bytes: Weights that a token touches.
        read: Read bandwidth in the same turns, bytes a second.
        agree: Of the tokens that both paths wrote, how many stand before the first difference.
        compared: How many both wrote.
    """

    model: str
    dtype: str
    tokens: int
    context: int
    lean: float | None
    generic: float
    token_bytes: int
    read: float
    agree: int
    compared: int

    @property
    def roofline(self) -> float:
        """Tokens a second if nothing but reading the weights took time."""
        return self.read / self.token_bytes


def measure_decode(
    directory: Path, dtype: torch.dtype | None, *, tokens: int, context: int, turns: int, progress: Progress
) -> DecodeFigure:
    """Measure one model.

    Args:
        directory: A checkpoint.
        dtype: To compute in; None for the checkpoint's own.
        tokens: To write in a turn; the generic path, which is slow, writes a quarter of them.
        context: Tokens of the prompt.
        turns: Of which the median is taken.
        progress: Told what is going on.
    """
    checkpoint = Checkpoint.open(directory)
    progress("loading")
    models: dict[Decode, MoeModel] = {}
    for path in ("lean", "generic"):
        model = load_moe_model(checkpoint, dtype, decode="auto" if path == "lean" else "generic")
        if path == "generic" or model.lean is not None:
            models[path] = model
    generic = models["generic"]
    pool = ExpertPool(1 << 50)
    for expert in generic.experts:
        pool.add(expert, load_expert(checkpoint, expert, generic.dtype))
    prompt = tuple(3 + 7 * i % min(250, generic.vocabulary_size - 3) for i in range(context))
    rates, texts, read = trio.run(_in_turns, models, pool, prompt, tokens, turns, progress)
    one, other = texts["generic"], texts.get("lean", [])
    agree = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
    return DecodeFigure(
        model=directory.name,
        dtype=str(generic.dtype).removeprefix("torch."),
        tokens=tokens,
        context=context,
        lean=median(rates["lean"]) if "lean" in rates else None,
        generic=median(rates["generic"]),
        token_bytes=token_bytes(generic),
        read=read,
        agree=agree if other else 0,
        compared=min(len(one), len(other)),
    )


async def _in_turns(
    models: dict[Decode, MoeModel],
    pool: ExpertPool,
    prompt: tuple[int, ...],
    tokens: int,
    turns: int,
    progress: Progress,
) -> tuple[dict[Decode, list[float]], dict[Decode, list[int]], float]:
    read = readers()
    rates: dict[Decode, list[float]] = {path: [] for path in models}
    texts: dict[Decode, list[int]] = {}
    bandwidths: dict[str, list[float]] = {name: [] for name in read}
    for turn in range(turns + 1):
        progress(f"turn {turn} of {turns}" if turn else "warming up")
        for path, model in models.items():
            async with open_engine(model, pool, limits=EngineLimits(drafts=OFF)) as engine:
                count = tokens if path == "lean" else max(2, tokens // 4)
                texts[path], stats = await write_text(engine, prompt, count)
            if turn:
                rates[path].append(stats.decode_tokens / stats.decode_s)
        for name, measure in read.items():
            figure = measure()
            if turn:
                bandwidths[name].append(figure)
    return rates, texts, max(median(figures) for figures in bandwidths.values())


async def write_text(engine: Engine, prompt: tuple[int, ...], tokens: int) -> tuple[list[int], GenerationStats]:
    """Continue a prompt greedily by so many tokens; returns them, and what it took."""
    request = GenerationRequest(prompt_ids=prompt, sampling=SamplingParams(max_tokens=tokens, ignore_eos=True))
    ids: list[int] = []
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, TokenEvent):
                ids.append(event.token_id)
            elif isinstance(event, FinishEvent):
                return ids, event.stats
    raise AssertionError("no finish event")


def token_bytes(model: MoeModel) -> int:
    """Weights that a decode step reads: the trunk without the embedding table, the head, and the chosen experts."""
    trunk = {parameter.data_ptr(): parameter.nbytes for parameter in model.trunk.parameters()}
    embedding = model.trunk.get_input_embeddings().weight  # type: ignore[operator]
    head = model.trunk.get_output_embeddings().weight  # type: ignore[operator]
    if embedding.data_ptr() != head.data_ptr():
        del trunk[embedding.data_ptr()]
    experts = sum((layer.top_k or 0) * size for layer, size in zip(model.layers, model.expert_bytes, strict=True))
    return sum(trunk.values()) + experts


def decode_table(figures: list[DecodeFigure]) -> str:
    """The figures as a Markdown table."""
    columns = ("lean, tok/s", "generic, tok/s", "lean / generic", "roofline, tok/s", "lean / roofline", "same tokens")
    lines = [f"| model | dtype | context | {' | '.join(columns)} |", "|---" * (3 + len(columns)) + "|"]
    for f in figures:
        head = f"| {f.model} | {f.dtype} | {f.context} "
        roof = f"{f.roofline:,.0f}"
        if f.lean is None:
            lines.append(f"{head}| | {f.generic:,.1f} | | {roof} | | |")
        else:
            lines.append(
                f"{head}| {f.lean:,.1f} | {f.generic:,.1f} | {f.lean / f.generic:.1f} | {roof} "
                f"| {f.lean / f.roofline:.2f} | {f.agree} of {f.compared} |"
            )
    return "\n".join(lines)
