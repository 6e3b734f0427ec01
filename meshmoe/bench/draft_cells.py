"""Drafts in every cell of links and redundancy, with experts where the planner puts them, in reckoned seconds.

Three nodes, each with its own kind of text, hold what the placement policy gives them. Each node's texts are written by
the real engine with every way to draft. What others would compute comes from an engine that has everything, at once;
the link is not waited for but *reckoned*: a call takes its round trip, the handling at both ends and its bytes' time.
The node's own computing counts in seconds of processor time. So other work on the box hardly disturbs the figures, and
the chooser of ``auto`` sees the very clock that it is judged by. What is left out: that own experts are computed while
a call is under way, and that other nodes are busy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import thread_time
from typing import NamedTuple

import msgspec
import numpy as np
import trio
from numpy.typing import NDArray
from torch import Tensor

from meshmoe.bench.passes import ForDrafts, passes_of
from meshmoe.bench.placement import CALL_S, EXPERTS, KINDS, PROMPT_TOKENS, READ_BYTES_PER_S, Cell, worlds
from meshmoe.bench.recorded import Recorded, halves, load_recorded
from meshmoe.bench_engine.texts import short_prompt
from meshmoe.bench_engine.turns import Progress
from meshmoe.core.ids import ExpertId
from meshmoe.core.links import LINK_PRESETS, LinkShape
from meshmoe.engine.answering import answer_call
from meshmoe.engine.drafts.mode import OFF, parse_draft_mode
from meshmoe.engine.engine import Engine, EngineLimits, open_engine
from meshmoe.engine.model import MoeModel, load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import LayerCall
from meshmoe.engine.request import FinishEvent, GenerationRequest, GenerationStats, SamplingParams, TokenEvent
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert
from meshmoe.placement.drafted import DraftDemand
from meshmoe.placement.policies import Policy, all_policies
from meshmoe.placement.world import World

BEGINNING_TOKENS = 24
"""Drawn at random before each text: greedy texts of a small model soon repeat themselves, which flatters drafts."""

WARM_TEXTS = 2
"""Of each node, before those that count: ``auto`` learns what passes take."""


IDLE_LOOK_S = 0.0001


class DraftCell(msgspec.Struct, frozen=True, kw_only=True):
    """One way to draft in one cell; sums over the nodes' texts.

    Attributes:
        link: Of `LINK_PRESETS`.
        redundancy: Experts that all nodes have room for, over those of the model.
        policy: Who says where experts stand.
        mode: How tokens were drafted.
        tokens_per_s: Decoded tokens a reckoned second.
        own_ms: Processor time of a token.
        link_ms: Reckoned time of its calls.
        rounds_per_token: Rounds a decoded token.
        tokens_per_pass: Tokens that a pass through the mesh told.
        drafted_per_pass: Tokens guessed for one: K.
        acceptance: Share of the drafted tokens that were right; None when none was drafted.
        same: Whether all texts were those of a node alone.
    """

    link: str
    redundancy: float
    policy: str
    mode: str
    tokens_per_s: float
    own_ms: float
    link_ms: float
    rounds_per_token: float
    tokens_per_pass: float
    drafted_per_pass: float
    acceptance: float | None
    same: bool


class _Reckoned:
    """All experts behind a link that is not waited for, and the clock that has its time; see the module."""

    def __init__(self, engine: Engine, link: LinkShape) -> None:
        self._engine = engine
        self._link = link
        self._random = random.Random(0)
        self.link_s = 0.0
        self.decode_s = 0.0
        self.node: Engine | None = None

    def now_s(self) -> float:
        """On the compute thread of the node."""
        return thread_time() + self.link_s

    async def compute(self, call: LayerCall) -> dict[int, Tensor]:
        outputs = await answer_call(self._engine, call, deadline=trio.current_time() + 60.0)
        sent = len({number for numbers in call.rows.values() for number in numbers})
        row_bytes = call.hidden.shape[1] * call.hidden.element_size()
        jitter_s = self._link.jitter_s * (self._random.random() + self._random.random())
        wire_s = (sent + sum(map(len, call.rows.values()))) * row_bytes / self._link.rate_bytes_per_s
        took_s = self._link.rtt_s + jitter_s + CALL_S + wire_s
        # The node must have come to wait for it, or it would take the link's time for that of its own experts.
        while self.node is not None and not self.node.compute.idle:  # noqa: ASYNC110  # the thread tells nobody
            await trio.sleep(IDLE_LOOK_S)
        self.link_s += took_s
        self.decode_s += took_s if call.decode else 0.0
        return outputs


@dataclass(frozen=True)
class _Text:
    prompt: tuple[int, ...]
    right: tuple[int, ...]


@dataclass(frozen=True)
class DraftCells:
    """Which cells to measure, and how.

    Attributes:
        links: Names of presets.
        redundancies: See `DraftCell`.
        policies: Names of placement policies.
        modes: As `meshmoe join --drafts` takes them.
        texts: Of each node, besides those that warm it up.
        tokens: Of each text.
    """

    links: Sequence[str]
    redundancies: Sequence[float]
    policies: Sequence[str]
    modes: Sequence[str]
    texts: int
    tokens: int


def measure_draft_cells(directory: Path, trace: str, wanted: DraftCells, progress: Progress) -> list[DraftCell]:
    """Measure every mode in every cell.

    Args:
        directory: The checkpoint that ``trace`` was recorded with; of a family that the lean path knows.
        trace: Recorded routing that placement goes by.
        wanted: The cells.
        progress: Told what is going on.
    """
    checkpoint = Checkpoint.open(directory)
    progress("loading")
    model = load_moe_model(checkpoint, decode="lean")
    whole = ExpertPool(1 << 50)
    for expert in model.experts:
        whole.add(expert, load_expert(checkpoint, expert, model.dtype))
    return trio.run(_measure, model, whole, trace, wanted, progress)


async def _measure(
    model: MoeModel, whole: ExpertPool, trace: str, wanted: DraftCells, progress: Progress
) -> list[DraftCell]:
    recorded, found, texts = load_recorded(trace), [], range(WARM_TEXTS + wanted.texts)
    async with open_engine(model, whole, limits=EngineLimits(drafts=OFF)) as alone:
        asked = [[await _text(alone, kind, number, wanted.tokens) for number in texts] for kind in KINDS]
        for redundancy in wanted.redundancies:
            for link in wanted.links:
                fit, _ = worlds(recorded, Cell(trace, redundancy, "equal", link))
                for policy in _policies(recorded, fit, model, wanted.policies):
                    pools = [_pool(whole, held) for held in policy.place(fit)]
                    for mode in wanted.modes:
                        progress(f"redundancy {redundancy:g}, {link}, {policy.name}, drafts {mode}")
                        of = _Cell(link, redundancy, policy.name, mode)
                        found.append(await _measure_cell(model, pools, alone, asked, of))
    return found


class _Cell(NamedTuple):
    link: str
    redundancy: float
    policy: str
    mode: str


def _policies(recorded: Recorded, fit: World, model: MoeModel, names: Sequence[str]) -> list[Policy]:
    """Policies by name; the one for drafts needs to know what passes are like."""
    generated = [halves(recorded.windows[kind])[0][:, PROMPT_TOKENS:] for kind in KINDS]
    expert_bytes = generated[0].shape[3] * int(fit.shape.expert_bytes[:, 0].sum())
    draft_s = (sum(part.nbytes for part in model.trunk.parameters()) + expert_bytes) / READ_BYTES_PER_S
    demands = [DraftDemand(passes_of(part, EXPERTS), draft_s) for part in generated]
    return [policy for policy in (*all_policies(), ForDrafts(demands)) if policy.name in names]


async def _measure_cell(
    model: MoeModel,
    pools: Sequence[ExpertPool],
    alone: Engine,
    asked: Sequence[Sequence[_Text]],
    cell: _Cell,
) -> DraftCell:
    total, same, link_s = GenerationStats(), True, 0.0
    for pool, texts in zip(pools, asked, strict=True):
        far = _Reckoned(alone, LINK_PRESETS[cell.link])
        limits = EngineLimits(drafts=parse_draft_mode(cell.mode))
        async with open_engine(model, pool, far, limits, far.now_s) as engine:
            far.node = engine
            for number, text in enumerate(texts):
                before_s = far.decode_s
                written, stats = await _write(engine, text.prompt, max_tokens=len(text.right))
                same &= written == text.right
                if number >= WARM_TEXTS:
                    _add(total, stats)
                    link_s += far.decode_s - before_s
    told = total.decode_tokens
    return DraftCell(
        **cell._asdict(),
        tokens_per_s=told / total.decode_s,
        own_ms=1e3 * (total.decode_s - link_s) / told,
        link_ms=1e3 * link_s / told,
        rounds_per_token=total.rounds_per_token,
        tokens_per_pass=total.tokens_per_pass,
        drafted_per_pass=total.drafted_tokens / total.decode_steps,
        acceptance=total.acceptance,
        same=same,
    )


def _add(total: GenerationStats, stats: GenerationStats) -> None:
    for name in (
        "decode_s",
        "decode_steps",
        "decode_tokens",
        "decode_rounds",
        "drafted_tokens",
        "accepted_tokens",
    ):
        setattr(total, name, getattr(total, name) + getattr(stats, name))


async def _text(alone: Engine, kind: str, number: int, tokens: int) -> _Text:
    opening = tuple(alone.model.tokenizer(short_prompt(kind, number)).input_ids)
    drawn, _ = await _write(alone, opening, max_tokens=BEGINNING_TOKENS, temperature=1.0, seed=number)
    prompt = opening + drawn
    return _Text(prompt, (await _write(alone, prompt, max_tokens=tokens))[0])


async def _write(engine: Engine, prompt: tuple[int, ...], **sampling: float) -> tuple[tuple[int, ...], GenerationStats]:
    params = msgspec.convert({**sampling, "ignore_eos": True}, SamplingParams)
    ids: list[int] = []
    async with engine.generate(GenerationRequest(prompt_ids=prompt, sampling=params)) as events:
        async for event in events:
            if isinstance(event, TokenEvent):
                ids.append(event.token_id)
            elif isinstance(event, FinishEvent):
                return tuple(ids), event.stats
    raise AssertionError("no finish event")


def _pool(whole: ExpertPool, held: NDArray[np.bool_]) -> ExpertPool:
    pool = ExpertPool(1 << 50)
    for layer, index in zip(*(places.tolist() for places in held.nonzero()), strict=True):
        weights = whole.get(ExpertId(layer, index))
        assert weights is not None
        pool.add(ExpertId(layer, index), weights)
    return pool


def draft_cells_table(cells: Sequence[DraftCell]) -> str:
    """The figures as a Markdown table, and one of how ``auto`` does against no drafts and the best other mode."""
    columns = ("tok/s", "times off", "own ms", "link ms", "rounds a token", "tokens a pass", "K", "right", "same text")
    lines = [f"| redundancy | link | placed by | drafts | {' | '.join(columns)} |", "|---" * (4 + len(columns)) + "|"]
    for c in cells:
        figures = (
            f"{c.tokens_per_s:.1f}",
            _ratio(c.tokens_per_s, _rate(cells, c, "off")),
            f"{c.own_ms:.2f} | {c.link_ms:.2f} | {c.rounds_per_token:.2f} | {c.tokens_per_pass:.2f}",
            f"{c.drafted_per_pass:.2f}",
            "" if c.acceptance is None else f"{c.acceptance:.0%}",
            "yes" if c.same else "no",
        )
        lines.append(f"| {c.redundancy:g} | {c.link} | {c.policy} | {c.mode} | {' | '.join(figures)} |")
    autos = [c for c in cells if c.mode == "auto"]
    if autos:
        lines += ["", "| redundancy | link | placed by | best other | auto / best | auto / off |", "|---" * 6 + "|"]
    for auto in autos:
        others = [c for c in cells if _place(c) == _place(auto) and c is not auto]
        if others:
            best = max(others, key=lambda c: c.tokens_per_s)
            ratios = (_ratio(auto.tokens_per_s, base) for base in (best.tokens_per_s, _rate(cells, auto, "off")))
            lines.append(f"| {auto.redundancy:g} | {auto.link} | {auto.policy} | {best.mode} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def _rate(cells: Sequence[DraftCell], like: DraftCell, mode: str) -> float | None:
    return next((c.tokens_per_s for c in cells if _place(c) == _place(like) and c.mode == mode), None)


def _place(cell: DraftCell) -> tuple[str, float, str]:
    return cell.link, cell.redundancy, cell.policy


def _ratio(rate: float, base: float | None) -> str:
    return "" if base is None else f"{rate / base:.2f}"
