"""A request among those that advance together: what it has to read next, and what comes of it."""

from __future__ import annotations

import trio
from torch import Tensor

from meshmoe.engine.drafts.asked import Asked, RequestDrafts
from meshmoe.engine.drafts.drafting import Drafting
from meshmoe.engine.generate import Generation
from meshmoe.engine.lean.batch import LeanEngine
from meshmoe.engine.lean.row import Row
from meshmoe.engine.request import GenerationEvent
from meshmoe.engine.sampling import Choice
from meshmoe.engine.writing import EVENTS_A_TOKEN_MAX


class Member:
    """See above. Belongs to the compute thread, but for `cancelled`, `done` and `failure`.

    Attributes:
        generation: The request.
        writer: Its text; ``writer.ids`` is all that has to be read.
        sequence: What has been read.
        busy: Whether a forward with its rows is under way; then nobody else may touch the sequence.
        cancelled: Whether nobody wants it any more.
        done: Set when it is through, however it ended.
        failure: What stopped it.
    """

    def __init__(self, generation: Generation, lean: LeanEngine, drafting: Drafting) -> None:
        self.generation = generation
        self.writer = generation.writer()
        self.busy = False
        self.cancelled = False
        self.done = trio.Event()
        self.failure: Exception | None = None
        self._lean = lean
        self._drafts = RequestDrafts(drafting.chances[self.writer.sampler.greedy])
        self._mode = generation.request.sampling.drafts or drafting.mode
        self.sequence = lean.sequence()

    @property
    def pending(self) -> int:
        """Tokens that have to be read before the next can be chosen."""
        return len(self.writer.ids) - self.sequence.length

    @property
    def writing(self) -> bool:
        """Whether it only has to read its last written token; otherwise it is reading a prompt."""
        return self.pending == 1 and self.writer.stats.completion_tokens > 0

    @property
    def listened_to(self) -> bool:
        """Whether its consumer has taken enough events for another token."""
        return self.generation.stream.room >= EVENTS_A_TOKEN_MAX

    def start(self) -> None:
        """Begin to read, or begin again: with what other texts have read already."""
        self.sequence.close()
        switch, ids = self.generation.model.cache.switch_tokens, self.writer.ids
        self.sequence = self._lean.sequence(switch is not None and len(ids) > switch)
        shared = self.sequence.share(ids)
        if not self.writer.stats.completion_tokens:
            self.writer.stats.shared_tokens = shared

    def prompt_rows(self, count: int) -> list[Row]:
        """The next tokens of a prompt."""
        ids, begin = self.writer.ids, self.sequence.length
        return [
            Row(self.sequence, ids[at], self.writer.stats, decode=False, logits=at == len(ids) - 1)
            for at in range(begin, begin + count)
        ]

    def asked(self) -> Asked:
        """What a decode pass must know of it."""
        writer, switch = self.writer, self.generation.model.cache.switch_tokens
        room = min(writer.room, self.generation.stream.room // EVENTS_A_TOKEN_MAX) - 1
        if switch is not None and not self.sequence.long:
            room = min(room, switch - len(writer.ids))  # beyond, the text is read again with other frequencies
        return Asked(
            self.sequence, writer.ids, writer.sampler, writer.stats, self._drafts, max(0, room), writer.ends, self._mode
        )

    def read(self, logits: Tensor | None) -> list[GenerationEvent]:
        """Note that rows have been read; ``logits`` (``[V]``) of the last if they were the text's last."""
        self.generation.context_tokens = self.sequence.length
        if logits is None:
            return []
        self.sequence.publish(self.writer.ids)
        return self.take([self.writer.sampler.choose(logits)])

    def take(self, choices: list[Choice]) -> list[GenerationEvent]:
        """Write chosen tokens, all but the last of which have been read, and tell of them."""
        return self.tell(self.note(choices)) if not self.writer.may_stop else self._take_each(choices)

    def note(self, choices: list[Choice]) -> list[Choice]:
        """Write chosen tokens; returns those to `tell` of, which need not be now while the text goes on."""
        noted: list[Choice] = []
        for at, choice in enumerate(choices, 1):
            if self.writer.note(choice, last=at == len(choices)):
                noted.append(choice)
            if self.writer.finished:
                break
        self._wrote()
        return noted

    def tell(self, noted: list[Choice], *, last: bool = True) -> list[GenerationEvent]:
        """What its client hears of tokens that were noted, see `Writer.tell`; a failure here is its own."""
        try:
            return self.writer.tell(noted, last=last)
        except Exception as error:
            self.failure = error
            return []

    def _take_each(self, choices: list[Choice]) -> list[GenerationEvent]:
        """Where the text of a token may end all, before the next is written."""
        events: list[GenerationEvent] = []
        for at, choice in enumerate(choices, 1):
            noted = self.writer.note(choice, last=at == len(choices))
            events += self.tell([choice] if noted else [])
            if self.writer.finished:
                break
        self._wrote()
        return events

    def _wrote(self) -> None:
        self.generation.context_tokens = self.sequence.length
        switch = self.generation.model.cache.switch_tokens
        if switch is not None and len(self.writer.ids) > switch and not self.sequence.long:
            self.restart()

    def restart(self) -> None:
        """Forget what has been read; it will be read again."""
        self.sequence.close()

    def close(self) -> None:
        """Give the blocks back; what is in them may serve others."""
        self.sequence.publish(self.writer.ids)
        self.sequence.close()
