"""What the engine's tests share: pools, generations to the end, and a mesh within the process."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import trio
from torch import Tensor

import meshmoe.model.bundled
from meshmoe.core.errors import ExpertUnavailableError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.engine import Engine, EngineLimits, open_engine
from meshmoe.engine.lean.blocks import Sequence
from meshmoe.engine.lean.row import Row
from meshmoe.engine.model import MoeModel, load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import LayerCall, RemoteExperts
from meshmoe.engine.request import FinishEvent, GenerationRequest, GenerationStats, SamplingParams, TokenEvent
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert
from meshmoe.model.source import WeightSource

EDGE_12M = Path(meshmoe.model.bundled.__file__).parent / "edge-12m"


@cache
def edge(dtype: torch.dtype = torch.float32) -> tuple[Checkpoint, MoeModel]:
    checkpoint = Checkpoint.open(EDGE_12M)
    return checkpoint, load_moe_model(checkpoint, dtype)


@cache
def edge_pool(dtype: torch.dtype = torch.float32) -> ExpertPool:
    """All experts of the bundled model; shared, so leave it as it is."""
    checkpoint, model = edge(dtype)
    return pool_of(checkpoint, model, model.experts)


def pool_of(source: WeightSource, model: MoeModel, experts: Iterable[ExpertId]) -> ExpertPool:
    pool = ExpertPool(1 << 32)
    for expert in experts:
        pool.add(expert, load_expert(source, expert, model.dtype))
    return pool


def subset(pool: ExpertPool, experts: Iterable[ExpertId]) -> ExpertPool:
    """A pool with private copies of some of another's experts, in other places of memory."""
    other = ExpertPool(1 << 32)
    for expert in experts:
        weights = pool.get(expert)
        assert weights is not None
        other.add(expert, {name: tensor.clone() for name, tensor in weights.items()})
    return other


async def until(condition: Callable[[], object]) -> None:
    """Look again every millisecond."""
    with trio.fail_after(50):
        while not condition():
            await trio.sleep(0.001)


def request(text: str | tuple[int, ...] = "The history of the", **sampling: object) -> GenerationRequest:
    ids = text if isinstance(text, tuple) else tuple(edge()[1].tokenizer(text).input_ids)
    return GenerationRequest(prompt_ids=ids, sampling=SamplingParams(**sampling))  # type: ignore[arg-type]


def with_engine(
    test: Callable[[Engine], Awaitable[None]],
    *,
    pool: ExpertPool | None = None,
    remote: RemoteExperts | None = None,
    **limits: int,
) -> None:
    """Run a test with an engine, and see that it leaves nothing running."""

    async def main() -> None:
        with trio.fail_after(60):
            async with open_engine(edge()[1], pool or edge_pool(), remote, EngineLimits(**limits)) as engine:
                await test(engine)
                assert engine.stats().active == engine.stats().queued == 0
                await until(lambda: engine._compute.live == 0)

    trio.run(main)


@dataclass
class Result:
    ids: list[int]
    text: str
    logprobs: list[float | None]
    finish: FinishEvent


async def complete(engine: Engine, prompt: str | tuple[int, ...], **sampling: object) -> Result:
    """Generate to the end."""
    ids = prompt if isinstance(prompt, tuple) else tuple(engine.model.tokenizer(prompt).input_ids)
    request = GenerationRequest(prompt_ids=ids, sampling=SamplingParams(**sampling))  # type: ignore[arg-type]
    result: list[TokenEvent] = []
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, FinishEvent):
                text = "".join(e.text for e in result) + event.text
                return Result([e.token_id for e in result], text, [e.logprob for e in result], event)
            result.append(event)
    raise AssertionError("no finish event")


@dataclass
class Scattered:
    """A mesh in miniature: other engines, each call after a random delay, each expert at whoever has it first."""

    holders: list[Engine]
    delay_max_s: float = 0.002
    seed: int = 0
    running: int = 0
    calls: list[LayerCall] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def compute(self, call: LayerCall) -> dict[int, Tensor]:
        self.running += 1
        self.calls.append(call)
        try:
            outputs: dict[int, Tensor] = {}
            async with trio.open_nursery() as nursery:
                for holder in self.holders:
                    mine = [e for e in call.rows if e not in outputs and ExpertId(call.layer, e) in holder.pool]
                    outputs |= dict.fromkeys(mine, call.hidden)
                    if mine:
                        nursery.start_soon(self._ask, holder, call, mine, outputs)
                if len(outputs) < len(call.rows):
                    raise ExpertUnavailableError(f"nobody has all of {list(call.rows)} of layer {call.layer}")
            return outputs
        finally:
            self.running -= 1

    async def _ask(self, holder: Engine, call: LayerCall, experts: list[int], outputs: dict[int, Tensor]) -> None:
        await trio.sleep(self._random.random() * self.delay_max_s)
        # As over the wire: only the rows that this holder needs, in other memory, perhaps at an odd address.
        needed = sorted({row for expert in experts for row in call.rows[expert]})
        place = {row: at for at, row in enumerate(needed)}
        rows = [(expert, [place[row] for row in call.rows[expert]]) for expert in experts]
        width = call.hidden.shape[1]
        buffer = torch.empty(len(needed) * width + 1, dtype=call.hidden.dtype)
        hidden = buffer[1:].view(len(needed), width)
        hidden.copy_(call.hidden[needed])
        deadline = trio.current_time() + 10
        answer = await holder.compute_experts(call.layer, rows, hidden, decode=call.decode, deadline=deadline)
        await trio.sleep(self._random.random() * self.delay_max_s)
        for (expert, numbers), output in zip(rows, answer.split([len(n) for _, n in rows]), strict=True):
            del numbers
            outputs[expert] = output


def grown(
    trunk: Sequence, parents: list[int], tokens: list[int], stats: GenerationStats
) -> tuple[list[Row], list[Sequence]]:
    """A tree of rows behind what a sequence has read, as drafts grow it.

    Args:
        trunk: What the tree begins behind.
        parents: Of each row the row before it, which comes earlier; -1 for the trunk.
        tokens: Of the rows.
        stats: Counters of the request.

    Returns:
        The rows, and the sequences that were forked; close these.
    """
    owners: list[Sequence] = []
    forks: list[tuple[Sequence, int]] = []
    going_on: dict[int, Sequence] = {}
    for at, parent in enumerate(parents):
        owner = going_on.pop(parent, None)
        if owner is None:
            owner = trunk.fork()
            forks.append((owner, parent))
        owners.append(owner)
        going_on[at] = owner
    rows = [
        Row(owner, token, stats, also=tuple(fork for fork, parent in forks if at in path_to(parents, parent)))
        for at, (owner, token) in enumerate(zip(owners, tokens, strict=True))
    ]
    return rows, [fork for fork, _ in forks]


def path_to(parents: list[int], at: int) -> list[int]:
    """The rows of a tree from its beginning to one of them."""
    return [*path_to(parents, parents[at]), at] if at >= 0 else []
