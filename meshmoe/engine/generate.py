"""One request from prompt to last token: synchronous code in a greenlet of the compute thread.

The prompt is read in chunks whose boundaries depend only on the prompt, so results do not depend on placement or load.
Between chunks, and between tokens, the others get their turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from meshmoe.engine.compute import Job
from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.detokenize import Detokenizer, StopMatcher
from meshmoe.engine.dispatch import RequestDispatch, current_runner
from meshmoe.engine.events import EventStream
from meshmoe.engine.grammar import Constraint
from meshmoe.engine.model import MoeModel
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import RemoteExperts
from meshmoe.engine.request import FinishEvent, GenerationRequest, GenerationStats, TokenEvent, TokenLogprob
from meshmoe.engine.sampling import Choice, Sampler
from meshmoe.engine.schedule import Priority

if TYPE_CHECKING:
    from meshmoe.engine.lean.batch import LeanEngine, Row

_CHUNK_TOKENS = 64


@dataclass(slots=True)
class Generation:
    """One request under way.

    Attributes:
        model: The model.
        pool: Experts that are resident here.
        remote: The mesh; None on a node without peers.
        counts: Activations of the node.
        request: A valid request.
        tokens_max: Tokens to write at most, at least 1; the prompt and these fit into the context.
        stream: Takes the events.
        lean: The lean path; None where the trunk itself computes.
        stats: The request's counters.
        context_tokens: Tokens in its cache; anyone may read this.
        admitted_at: ``perf_counter()`` when it got its place among the active requests.
        constraint: Of the text's form.
    """

    model: MoeModel
    pool: ExpertPool
    remote: RemoteExperts | None
    counts: ActivationCounts
    request: GenerationRequest
    tokens_max: int
    stream: EventStream
    lean: LeanEngine | None = None
    stats: GenerationStats = field(default_factory=GenerationStats)
    context_tokens: int = 0
    admitted_at: float = field(default_factory=perf_counter)
    constraint: Constraint | None = None

    def run(self, job: Job) -> None:
        """Generate: emit a `TokenEvent` for every token and a `FinishEvent` at the end.

        The end-of-text token itself is not emitted, nor counted as written.
        """
        model, params, stats = self.model, self.request.sampling, self.stats
        dispatch = RequestDispatch(job, self.pool, self.remote, stats, self.counts)
        current_runner.set(dispatch)
        stats.prompt_tokens = len(self.request.prompt_ids)
        sampler, text = Sampler(params, self.request.prompt_ids, self.constraint), _Text(model, params.stop)
        ids = list(self.request.prompt_ids)
        reader: _Reader = _Generic(self, job, dispatch) if self.lean is None else _Lean(self, job, self.lean)
        try:
            self._write(job, reader, sampler, text, ids)
        finally:
            reader.close()

    def _write(self, job: Job, reader: _Reader, sampler: Sampler, text: _Text, ids: list[int]) -> None:
        model, params, stats = self.model, self.request.sampling, self.stats
        logits = reader.read(ids)
        reason = "length"
        while True:
            choice = sampler.choose(logits)
            elapsed_s = perf_counter() - self.admitted_at
            if stats.decode_steps == 0:
                stats.prefill_s = elapsed_s
            stats.decode_s = elapsed_s - stats.prefill_s
            if choice.token_id in model.eos_ids and not params.ignore_eos:
                reason = "stop"
                break
            stats.completion_tokens += 1
            piece, stopped = text.push(choice.token_id)
            self.stream.emit(job, _token_event(model, choice, piece))
            if stopped or sampler.complete:
                reason = "stop"
                break
            if stats.completion_tokens >= self.tokens_max:
                break
            ids.append(choice.token_id)
            if self.context_tokens == model.cache.switch_tokens:
                logits = reader.read(ids)
            else:
                job.turn(Priority.DECODE)
                logits = reader.step(choice.token_id)
                self.context_tokens += 1
            stats.decode_steps += 1
        rest, stopped = text.finish()
        self.stream.emit(job, FinishEvent(reason="stop" if stopped else reason, stats=stats, text=rest))


class _Reader(Protocol):
    """What reads a text's tokens and returns the last one's logits, ``[V]``."""

    def read(self, ids: list[int]) -> Tensor:
        """Read a whole text from its beginning."""

    def step(self, token: int) -> Tensor:
        """Read one more token."""

    def close(self) -> None:
        """Let go of what was kept."""


class _Generic:
    """Reads through the trunk's own code."""

    def __init__(self, generation: Generation, job: Job, dispatch: RequestDispatch) -> None:
        self._generation = generation
        self._job = job
        self._dispatch = dispatch
        self._cache: Any = None

    def read(self, ids: list[int]) -> Tensor:
        model, self._dispatch.decode = self._generation.model, False
        self._cache = model.new_cache()
        for chunk in model.cache.prompt_chunks(len(ids)):
            if chunk.start or self._job.priority != Priority.PREFILL:
                self._job.turn(Priority.PREFILL)
            logits, self._cache = model.forward(ids[chunk], chunk.start, self._cache)
            self._generation.context_tokens = chunk.stop
        return logits

    def step(self, token: int) -> Tensor:
        self._dispatch.decode = True
        position = self._generation.context_tokens
        logits, self._cache = self._generation.model.forward([token], position, self._cache)
        return logits

    def close(self) -> None:
        self._cache = None


class _Lean:
    """Reads through compiled code."""

    def __init__(self, generation: Generation, job: Job, lean: LeanEngine) -> None:
        self._generation = generation
        self._job = job
        self._lean = lean
        self._batch = lean.batch(job)
        self._sequence = lean.sequence()

    def read(self, ids: list[int]) -> Tensor:
        generation, switch = self._generation, self._generation.model.cache.switch_tokens
        self._sequence.close()
        self._sequence = self._lean.sequence(switch is not None and len(ids) > switch)
        for begin in range(0, len(ids), _CHUNK_TOKENS):
            if begin or self._job.priority != Priority.PREFILL:
                self._job.turn(Priority.PREFILL)
            end = min(begin + _CHUNK_TOKENS, len(ids))
            rows = [self._row(ids[at], decode=False, logits=at == len(ids) - 1) for at in range(begin, end)]
            logits = self._batch.forward(rows)
            generation.context_tokens = end
        return logits[0]

    def step(self, token: int) -> Tensor:
        return self._batch.forward([self._row(token)])[0]

    def close(self) -> None:
        self._sequence.close()

    def _row(self, token: int, decode: bool = True, logits: bool = True) -> Row:
        from meshmoe.engine.lean.batch import Row

        return Row(self._sequence, token, self._generation.stats, decode=decode, logits=logits)


class _Text:
    """Detokeniser and stop strings together."""

    def __init__(self, model: MoeModel, stops: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(model.tokenizer)
        self._matcher = StopMatcher(stops)
        self._stopped = False

    def push(self, token_id: int) -> tuple[str, bool]:
        """Text that became certain, and whether it ends at a stop string."""
        piece, self._stopped = self._matcher.push(self._detokenizer.push(token_id))
        return piece, self._stopped

    def finish(self) -> tuple[str, bool]:
        """Text that was held back, and whether the text ended at a stop string."""
        if self._stopped:
            return "", True
        piece, stopped = self._matcher.push(self._detokenizer.finish())
        return (piece, True) if stopped else (piece + self._matcher.finish(), False)


def _token_event(model: MoeModel, choice: Choice, piece: str) -> TokenEvent:
    top = tuple(TokenLogprob(token_id, model.tokenizer.decode([token_id]), lp) for token_id, lp in choice.top)
    return TokenEvent(token_id=choice.token_id, text=piece, logprob=choice.logprob, top_logprobs=top)
