"""Drafts beside none: one node that holds a share of the experts, and all others behind a link, in one process.

The other side is an engine of its own with every expert, and an answer takes at least the link's round trip. That
leaves out what the wire and the other node's queue cost (`meshmoe bench mesh` has them), and so shows what rounds cost.
The node holds either the experts that its text uses most in each layer (*spread*), or whole layers (*layers*): the
former make better drafts, the latter need fewer rounds a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec
import trio
from torch import Tensor

from meshmoe.bench_engine.decode import write_text
from meshmoe.bench_engine.turns import Progress
from meshmoe.core.ids import ExpertId
from meshmoe.engine.answering import answer_call
from meshmoe.engine.drafts.mode import OFF, parse_draft_mode
from meshmoe.engine.engine import Engine, EngineLimits, open_engine
from meshmoe.engine.model import MoeModel, load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import LayerCall
from meshmoe.engine.request import GenerationStats
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert

Held = Literal["spread", "layers"]

PROMPTS = (
    "The server process is started by the administrator. When a client connects, it",
    "def read_lines(path):\n    with open(path) as file:\n        for line in",
    "lantern, noun: a lamp with",
)

WARM_TOKENS = 48
"""Written before what is measured, so that ``auto`` knows the link."""


class DraftFigure(msgspec.Struct, frozen=True, kw_only=True):
    """Sums and medians over the prompts.

    Attributes:
        rtt_ms: Round trip of the link.
        held: What the node holds.
        mode: How tokens were drafted.
        tokens_per_s: Decoded tokens a second, one stream, median of the turns.
        rounds_per_token: Rounds a decoded token.
        tokens_per_pass: Tokens that a pass through the mesh told.
        acceptance: Share of the drafted tokens that were right; None when none was drafted.
        same: Whether all texts were those written without drafts.
    """

    rtt_ms: float
    held: Held
    mode: str
    tokens_per_s: float
    rounds_per_token: float
    tokens_per_pass: float
    acceptance: float | None
    same: bool


class _Far:
    """All experts behind a link."""

    def __init__(self, engine: Engine, rtt_s: float) -> None:
        self._engine = engine
        self._rtt_s = rtt_s

    async def compute(self, call: LayerCall) -> dict[int, Tensor]:
        arrives_s = trio.current_time() + self._rtt_s
        outputs = await answer_call(self._engine, call, deadline=trio.current_time() + 60.0)
        await trio.sleep_until(max(arrives_s, trio.current_time()))
        return outputs


def measure_drafts(
    directory: Path,
    *,
    share: float,
    rtts_ms: Sequence[float],
    modes: Sequence[str],
    tokens: int,
    turns: int,
    progress: Progress,
) -> list[DraftFigure]:
    """Measure every mode on every link, in turns.

    Args:
        directory: A checkpoint of a family that the lean path knows.
        share: Of the experts that the node holds.
        rtts_ms: Round trips.
        modes: As `meshmoe join --drafts` takes them.
        tokens: To write for each prompt.
        turns: Of which the median is taken.
        progress: Told what is going on.
    """
    checkpoint = Checkpoint.open(directory)
    progress("loading")
    model = load_moe_model(checkpoint, decode="lean")
    whole = ExpertPool(1 << 50)
    for expert in model.experts:
        whole.add(expert, load_expert(checkpoint, expert, model.dtype))
    return trio.run(_measure, model, whole, share, rtts_ms, modes, tokens, turns, progress)


async def _measure(
    model: MoeModel,
    whole: ExpertPool,
    share: float,
    rtts_ms: Sequence[float],
    modes: Sequence[str],
    tokens: int,
    turns: int,
    progress: Progress,
) -> list[DraftFigure]:
    prompts = [tuple(model.tokenizer(text).input_ids) for text in PROMPTS]
    figures = []
    async with open_engine(model, whole, limits=EngineLimits(drafts=OFF)) as far:
        pools = []
        for prompt in prompts:
            before = far.counts.copy()
            await write_text(far, prompt, 256)
            used = [now - then for now, then in zip(far.counts.decode, before.decode, strict=True)]
            pools.append({held: _pool(model, whole, used, share, held) for held in ("spread", "layers")})
        texts = [(await write_text(far, prompt, tokens))[0] for prompt in prompts]
        for rtt_ms in rtts_ms:
            for held in ("spread", "layers"):
                progress(f"{rtt_ms:g} ms, {held}")
                rates: dict[str, list[float]] = {mode: [] for mode in modes}
                totals = {mode: GenerationStats() for mode in modes}
                same = dict.fromkeys(modes, True)
                for _ in range(turns):
                    for mode in modes:
                        took_s = 0.0
                        for prompt, pool, text in zip(prompts, pools, texts, strict=True):
                            limits = EngineLimits(drafts=parse_draft_mode(mode))
                            async with open_engine(model, pool[held], _Far(far, rtt_ms / 1e3), limits) as engine:
                                await write_text(engine, prompt, WARM_TOKENS)
                                found, stats = await write_text(engine, prompt, tokens)
                            took_s += stats.decode_s
                            same[mode] &= found == text
                            _add(totals[mode], stats)
                        rates[mode].append((tokens - 1) * len(prompts) / took_s)
                figures += [_figure(rtt_ms, held, mode, rates[mode], totals[mode], same[mode]) for mode in modes]
    return figures


def _figure(
    rtt_ms: float, held: Held, mode: str, rates: list[float], total: GenerationStats, same: bool
) -> DraftFigure:
    return DraftFigure(
        rtt_ms=rtt_ms,
        held=held,
        mode=mode,
        tokens_per_s=median(rates),
        rounds_per_token=total.rounds_per_token,
        tokens_per_pass=total.tokens_per_pass,
        acceptance=total.acceptance,
        same=same,
    )


def _add(total: GenerationStats, stats: GenerationStats) -> None:
    for name in ("decode_steps", "decode_tokens", "decode_rounds", "drafted_tokens", "accepted_tokens"):
        setattr(total, name, getattr(total, name) + getattr(stats, name))


def _pool(model: MoeModel, whole: ExpertPool, used: Sequence[object], share: float, held: Held) -> ExpertPool:
    """A pool with a share of the experts: those used most in each layer, or whole layers and what is left of one."""
    pool, left = ExpertPool(1 << 50), round(share * len(model.experts))
    for at, layer in enumerate(model.layers):
        order = [int(index) for index in used[at].argsort()[::-1]]  # type: ignore[attr-defined]  # arrays
        count = round(share * layer.n_experts) if held == "spread" else min(left, layer.n_experts)
        left -= count
        for index in order[:count]:
            weights = whole.get(ExpertId(at, index))
            assert weights is not None
            pool.add(ExpertId(at, index), weights)
    return pool


def drafts_table(figures: Sequence[DraftFigure]) -> str:
    """The figures as a Markdown table; times off is against the same holdings without drafts."""
    columns = ("tok/s", "times off", "rounds a token", "tokens a pass", "right", "same text")
    lines = [f"| RTT | holds | drafts | {' | '.join(columns)} |", "|---" * (3 + len(columns)) + "|"]
    off = {(f.rtt_ms, f.held): f.tokens_per_s for f in figures if f.mode == "off"}
    for f in figures:
        base = off.get((f.rtt_ms, f.held))
        times = f"{f.tokens_per_s / base:.2f}" if base else ""
        right = "" if f.acceptance is None else f"{f.acceptance:.0%}"
        lines.append(
            f"| {f.rtt_ms:g} ms | {f.held} | {f.mode} | {f.tokens_per_s:.1f} | {times} | {f.rounds_per_token:.2f} "
            f"| {f.tokens_per_pass:.2f} | {right} | {'yes' if f.same else 'no'} |"
        )
    return "\n".join(lines)
