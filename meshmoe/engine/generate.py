"""One request from prompt to last token: synchronous code in a greenlet of the compute thread.

The prompt is read in chunks whose boundaries depend only on the prompt, so results do not depend on placement or load.
Between chunks, and between tokens, the others get their turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

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
    from meshmoe.engine.lean.request import LeanEngine


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
        lean: Makes the lean path's decode steps; None where the trunk itself computes them.
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
        lean = self.lean.request(dispatch) if self.lean is not None else None
        logits, cache = self._read(job, ids)
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
                dispatch.decode = False
                job.turn(Priority.PREFILL)
                logits, cache = self._read(job, ids)
            else:
                dispatch.decode = True
                job.turn(Priority.DECODE)
                if lean is None:
                    logits, cache = model.forward([choice.token_id], self.context_tokens, cache)
                else:
                    logits = lean.step(choice.token_id, self.context_tokens, cache)
                self.context_tokens += 1
            stats.decode_steps += 1
        rest, stopped = text.finish()
        self.stream.emit(job, FinishEvent(reason="stop" if stopped else reason, stats=stats, text=rest))

    def _read(self, job: Job, ids: list[int]) -> tuple[Tensor, Any]:
        """Read a whole text; returns the last token's logits, ``[V]``, and the cache."""
        cache = self.model.new_cache()
        for chunk in self.model.cache.prompt_chunks(len(ids)):
            if chunk.start:
                job.turn(Priority.PREFILL)
            logits, cache = self.model.forward(ids[chunk], chunk.start, cache)
            self.context_tokens = chunk.stop
        return logits, cache


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
