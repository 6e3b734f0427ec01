"""What becomes of the chosen tokens of one request: its text, its events, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from meshmoe.engine.detokenize import Detokenizer, StopMatcher
from meshmoe.engine.grammar import Constraint
from meshmoe.engine.model import MoeModel
from meshmoe.engine.request import (
    FinishEvent,
    GenerationEvent,
    GenerationRequest,
    GenerationStats,
    TokenEvent,
    TokenLogprob,
)
from meshmoe.engine.sampling import Choice, Sampler

EVENTS_A_TOKEN_MAX = 2
"""Events that `Writer.take` makes of one token at most."""


class Writer:
    """One request's text, from its first chosen token on.

    Attributes:
        ids: Prompt and written tokens.
        sampler: Chooses the tokens.
        stats: The request's counters.
        finished: Whether the text has ended.
        room: Tokens that may still be written.
        ends: Tokens that end it.
    """

    def __init__(
        self,
        model: MoeModel,
        request: GenerationRequest,
        tokens_max: int,
        constraint: Constraint | None,
        stats: GenerationStats,
        admitted_at: float,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.ids = list(request.prompt_ids)
        self.sampler = Sampler(request.sampling, request.prompt_ids, constraint)
        self.stats = stats
        self.finished = False
        self.room = tokens_max
        self._model = model
        self.ends = frozenset() if request.sampling.ignore_eos else model.eos_ids
        self._admitted_at = admitted_at
        self._clock = clock
        self._text = _Text(model, request.sampling.stop)
        self._began = False
        stats.prompt_tokens = len(request.prompt_ids)

    def take(self, choice: Choice) -> list[GenerationEvent]:
        """Write a chosen token; returns its `TokenEvent`, and a `FinishEvent` if the text ends with it.

        The end-of-text token itself has no event and is not counted as written.
        """
        stats = self.stats
        elapsed_s = self._clock() - self._admitted_at
        if not self._began:
            self._began, stats.prefill_s = True, elapsed_s
        stats.decode_s = elapsed_s - stats.prefill_s
        if choice.token_id in self.ends:
            return [self._finish("stop")]
        stats.completion_tokens += 1
        self.room -= 1
        self.ids.append(choice.token_id)
        piece, stopped = self._text.push(choice.token_id)
        event = _token_event(self._model, choice, piece)
        if stopped or self.sampler.complete:
            return [event, self._finish("stop")]
        if not self.room:
            return [event, self._finish("length")]
        return [event]

    def _finish(self, reason: str) -> FinishEvent:
        self.finished = True
        rest, stopped = self._text.finish()
        return FinishEvent(reason="stop" if stopped else reason, stats=self.stats, text=rest)


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
