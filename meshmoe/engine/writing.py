"""What becomes of the chosen tokens of one request: its text, its events, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
        self.room = tokens_max
        self._model = model
        self.ends = frozenset() if request.sampling.ignore_eos else model.eos_ids
        self._admitted_at = admitted_at
        self._clock = clock
        self._text = _Text(model, request.sampling.stop)
        self._began = False
        self._reason = ""
        """Why the text ends; empty while it does not."""
        stats.prompt_tokens = len(request.prompt_ids)

    def take(self, choice: Choice) -> list[GenerationEvent]:
        """Write a chosen token; returns its `TokenEvent`, and a `FinishEvent` if the text ends with it.

        The end-of-text token itself has no event and is not counted as written.
        """
        told = [choice] if self.note(choice, last=True) else []
        return self.tell(told)

    @property
    def finished(self) -> bool:
        """Whether the text has ended."""
        return bool(self._reason)

    @property
    def may_stop(self) -> bool:
        """Whether each token has to be told before the next is taken: what is told may end the text."""
        return self._text.may_stop

    def note(self, choice: Choice, *, last: bool) -> bool:
        """Write a chosen token; what it says to the client is told later, but before a text that is `finished` ends.

        Args:
            choice: The token.
            last: Whether it is the last one that the sampler has chosen.

        Returns:
            Whether there is something to `tell` of it: of an end-of-text token there is not.
        """
        stats = self.stats
        elapsed_s = self._clock() - self._admitted_at
        if not self._began:
            self._began, stats.prefill_s = True, elapsed_s
        stats.decode_s = elapsed_s - stats.prefill_s
        if choice.token_id in self.ends:
            self._reason = "stop"
            return False
        stats.completion_tokens += 1
        self.room -= 1
        self.ids.append(choice.token_id)
        if last and self.sampler.complete:
            self._reason = "stop"
        elif not self.room:
            self._reason = "length"
        return True

    def tell(self, choices: Iterable[Choice], *, last: bool = True) -> list[GenerationEvent]:
        """The `TokenEvent`s of tokens that were noted, in order, and a `FinishEvent` if the text ends with them.

        Args:
            choices: The tokens.
            last: Whether no more were noted after them.
        """
        events: list[GenerationEvent] = []
        for choice in choices:
            piece, stopped = self._text.push(choice.token_id)
            events.append(_token_event(self._model, choice, piece))
            if stopped:
                self._reason = "stop"
        if last and self._reason:
            events.append(self._finish(self._reason))
        return events

    def _finish(self, reason: str) -> FinishEvent:
        rest, stopped = self._text.finish()
        return FinishEvent(reason="stop" if stopped else reason, stats=self.stats, text=rest)


class _Text:
    """Detokeniser and stop strings together."""

    def __init__(self, model: MoeModel, stops: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(model.tokenizer)
        self._matcher = StopMatcher(stops)
        self.may_stop = bool(stops)
        """Whether a piece of text may end it."""
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
