"""Asking minters whether their claims stand, and answering when asked.

Questions of one event to one peer travel together: after a partition heals there may be hundreds.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.claims import AskId, Claim
from meshmoe.custody.desk import Desk
from meshmoe.custody.effects import Released
from meshmoe.custody.messages import BATCH_MAX, ClaimAnswers, ClaimQuestions, Question, Standing

_T = TypeVar("_T")


class Questions:
    """One for each machine."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._outbox: dict[NodeId, list[Question]] = {}
        self._not_before_s: dict[ExpertId, float] = {}

    def ask(self, expert: ExpertId, slot: int, claim: Claim) -> None:
        """Ask the minter of ``claim`` if it stands, unless the rule forbids it or a question went out just now."""
        desk = self._desk
        record = desk.book[expert]
        if not desk.book.rule.may_ask(record, slot, claim, desk.plan.slots(expert)):
            return
        ready_s = self._not_before_s.get(expert, 0.0)
        if record.ask is not None or desk.now < ready_s:
            desk.agenda.at(expert, max(ready_s, desk.now + desk.config.ask_retry_s))
            return
        ask_id = desk.book.ask(expert, slot, claim.node, desk.now + desk.config.ask_timeout_s)
        self._not_before_s[expert] = desk.now + desk.config.ask_timeout_s + self._pause_s(expert)
        self._outbox.setdefault(claim.node, []).append(Question(expert.layer, expert.index, slot, ask_id.number))

    def flush(self) -> None:
        """Send what was asked during the present event."""
        for peer, questions in self._outbox.items():
            for batch in _batches(questions):
                self._desk.send(peer, ClaimQuestions(self._desk.book.life.generation, batch))
        self._outbox.clear()

    def answer(self, peer: NodeId, message: ClaimQuestions) -> None:
        """Tell ``peer`` which of our claims stand now; once we are leaving, none that anybody should rely on.

        A leave may end with claims that nobody took over. Whoever was relieved by one of them would be missed.
        What was answered before is believed no longer than a question waits, and a leave takes longer to give up.
        """
        book, leaving = self._desk.book, self._desk.leaving
        answers = []
        for question in message.questions:
            expert = ExpertId(question.layer, question.index)
            claim = book.rule.answer(book[expert], question.slot) if expert in book and not leaving else None
            epoch = None if claim is None else claim.epoch
            answers.append(Standing(question.layer, question.index, question.slot, question.number, epoch))
        self._desk.send(peer, ClaimAnswers(message.generation, answers))

    def answered(self, peer: NodeId, generation: int, message: ClaimAnswers) -> list[ExpertId]:
        """Take in the answers of one life of ``peer``; returns the experts of which our claim is released."""
        desk = self._desk
        released = []
        for answer in message.answers:
            expert = ExpertId(answer.layer, answer.index)
            if expert not in desk.book:
                continue
            slot = desk.book[expert].slot
            claim = None if answer.epoch is None else Claim(answer.epoch, peer, generation)
            if claim is not None:
                desk.survey.note(expert, answer.slot, claim, desk.now + desk.config.note_s)
            ask_id = AskId(message.generation, answer.number)
            if desk.book.answered(expert, ask_id, answer.slot, peer, claim, desk.now):
                desk.out.append(Released(expert, slot, peer))
                released.append(expert)
            elif expert not in desk.book.asking:  # a no: ask again before long, the minter may have been asking itself
                self._not_before_s[expert] = desk.now + self._pause_s(expert)
                desk.agenda.at(expert, self._not_before_s[expert])
        return released

    def _pause_s(self, expert: ExpertId) -> float:
        """Between questions about one expert: one to two times the retry time, so that no two nodes keep step."""
        me, asks = self._desk.me, self._desk.book[expert].asks
        jitter = zlib.crc32(f"{me} {expert} {asks}".encode()) / (1 << 32)
        return self._desk.config.ask_retry_s * (1.0 + jitter)

    def expire(self) -> None:
        """Forget questions that were not answered in time, and think again about their experts."""
        self._desk.agenda.add(self._desk.book.expire(self._desk.now))


def _batches(items: Sequence[_T]) -> Iterator[list[_T]]:
    for start in range(0, len(items), BATCH_MAX):
        yield list(items[start : start + BATCH_MAX])
