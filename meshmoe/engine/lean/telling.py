"""Telling clients what was written: at once, or while the next step waits for peers.

Making text of tokens and waking trio takes 0.1 ms and more, which a step of a small model on a fast link feels. So
where steps are short and wait for peers, their tokens are told while the next one waits. What ends a text is told at
once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from meshmoe.engine.compute import ComputeThread
from meshmoe.engine.events import EventStream
from meshmoe.engine.later import Later
from meshmoe.engine.lean.member import Member
from meshmoe.engine.request import GenerationEvent
from meshmoe.engine.sampling import Choice

TELL_LATER_S = 0.02
"""Tokens of steps that take less are told later: nobody sees that delay."""

Chosen = list[tuple[Member, list[Choice]]]
"""Requests, each with tokens of it."""


class Telling:
    """See the module. Belongs to the compute thread."""

    def __init__(self, compute: ComputeThread, later: Later) -> None:
        self._compute = compute
        self._later = later

    def wrote(self, chosen: Chosen, step_s: float, waited_s: float) -> None:
        """Take chosen tokens into the texts, and tell of them.

        Args:
            chosen: All but each one's last have been read.
            step_s: What the step took.
            waited_s: For how long of that it waited for peers; if it did, the next will, too.
        """
        if any(member.writer.may_stop for member, _ in chosen):
            self._later.catch_up()
            self.tell((member, member.take(choices)) for member, choices in chosen)
            return
        noted = [(member, member.note(choices)) for member, choices in chosen]
        if waited_s and step_s < TELL_LATER_S and not any(member.writer.finished for member, _ in chosen):
            for member, choices in noted:
                member.generation.stream.count(len(choices))
            self._later.postpone(partial(self._tell_counted, noted))
        else:
            self._later.catch_up()
            self.tell((member, member.tell(choices)) for member, choices in noted)

    def tell(self, written: Iterable[tuple[Member, list[GenerationEvent]]]) -> None:
        """Hand over events."""
        events = [(member.generation.stream, found) for member, found in written if found]
        for stream, found in events:
            stream.count(len(found))
        if events:
            self._compute.post(_deliver, events)

    def _tell_counted(self, noted: Chosen) -> None:
        events = [(member.generation.stream, member.tell(choices, last=False)) for member, choices in noted]
        self._compute.post(_deliver, events)


def _deliver(events: list[tuple[EventStream, list[GenerationEvent]]]) -> None:
    for stream, found in events:
        for event in found:
            stream.put(event)
