"""One request from prompt to last token on the generic path: synchronous code in a greenlet of the compute thread.

The prompt is read in chunks whose boundaries depend only on the prompt, so results do not depend on placement or load.
Between chunks, and between tokens, the others get their turn. (The lean path: `meshmoe.engine.lean.scheduler`.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor

from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.dispatch import RequestDispatch, current_runner
from meshmoe.engine.events import EventStream
from meshmoe.engine.grammar import Constraint
from meshmoe.engine.job import Job
from meshmoe.engine.model import MoeModel
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import RemoteExperts
from meshmoe.engine.request import GenerationRequest, GenerationStats
from meshmoe.engine.schedule import Priority
from meshmoe.engine.writing import Writer


@dataclass(slots=True, eq=False)
class Generation:
    """One request under way.

    Attributes:
        model: The model.
        request: A valid request.
        tokens_max: Tokens to write at most, at least 1; the prompt and these fit into the context.
        stream: Takes the events.
        constraint: Of the text's form.
        stats: The request's counters.
        context_tokens: Tokens in its cache; anyone may read this.
        clock: Seconds that it is timed by.
        admitted_at: By this clock, when it got its place among the active requests.
    """

    model: MoeModel
    request: GenerationRequest
    tokens_max: int
    stream: EventStream
    constraint: Constraint | None = None
    stats: GenerationStats = field(default_factory=GenerationStats)
    context_tokens: int = 0
    clock: Callable[[], float] = perf_counter
    admitted_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.admitted_at = self.clock()

    def writer(self) -> Writer:
        """Make what its chosen tokens go to."""
        begun = self.admitted_at, self.clock
        return Writer(self.model, self.request, self.tokens_max, self.constraint, self.stats, *begun)


def generate(
    job: Job, generation: Generation, pool: ExpertPool, remote: RemoteExperts | None, counts: ActivationCounts
) -> None:
    """Emit a `TokenEvent` for every token and a `FinishEvent` at the end.

    Args:
        job: The greenlet that runs this.
        generation: What to generate.
        pool: Experts that are resident here.
        remote: The mesh; None on a node without peers.
        counts: Activations of the node.
    """
    model, stats, writer = generation.model, generation.stats, generation.writer()
    dispatch = RequestDispatch(job, pool, remote, stats, counts)
    current_runner.set(dispatch)
    logits, cache = _read(job, generation, writer.ids)
    while True:
        for event in writer.take(writer.sampler.choose(logits)):
            generation.stream.emit(job, event)
        if writer.finished:
            return
        if generation.context_tokens == model.cache.switch_tokens:
            dispatch.decode = False
            job.turn(Priority.PREFILL)
            logits, cache = _read(job, generation, writer.ids)
        else:
            dispatch.decode = True
            job.turn(Priority.DECODE)
            logits, cache = model.forward(writer.ids[-1:], generation.context_tokens, cache)
            generation.context_tokens += 1
        stats.decode_steps += 1
        stats.decode_tokens += 1


def _read(job: Job, generation: Generation, ids: list[int]) -> tuple[Tensor, Any]:
    """Read a whole text; returns the last token's logits, ``[V]``, and the cache."""
    model = generation.model
    cache = model.new_cache()
    for chunk in model.cache.prompt_chunks(len(ids)):
        if chunk.start:
            job.turn(Priority.PREFILL)
        logits, cache = model.forward(ids[chunk], chunk.start, cache)
        generation.context_tokens = chunk.stop
    return logits, cache
