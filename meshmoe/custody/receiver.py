"""The taking end of migrations: see `meshmoe.custody.migration` for the table that this file follows."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.claims import Claim
from meshmoe.custody.custodian import Custodian
from meshmoe.custody.desk import Desk
from meshmoe.custody.effects import MigrationEnded
from meshmoe.custody.events import RefusalReason
from meshmoe.custody.intake import Intakes
from meshmoe.custody.messages import (
    MigrationAcked,
    MigrationCancelled,
    MigrationClaimed,
    MigrationOffer,
    MigrationRefused,
    MigrationReserved,
)
from meshmoe.custody.migration import ReceiverInput, ReceiverState, Reception

ENDED_MAX = 1024
"""Ends remembered, to answer a repeated OFFER as the first was answered in the end."""

Key = tuple[NodeId, int]


class Receivers:
    """All migrations that this node takes."""

    def __init__(self, desk: Desk, intakes: Intakes, custodian: Custodian) -> None:
        self._desk = desk
        self._intakes = intakes
        self._custodian = custodian
        self._receptions: dict[Key, Reception] = {}
        self._ended: OrderedDict[Key, RefusalReason | None] = OrderedDict()
        self._waiting: dict[Key, tuple[int, MigrationOffer]] = {}
        """Offers for which room is being made."""

    def __len__(self) -> int:
        return len(self._receptions)

    def under_way(self) -> list[Reception]:
        """All of them."""
        return list(self._receptions.values())

    def offered(self, peer: NodeId, generation: int, message: MigrationOffer) -> None:
        """A donor offers, for the first time or again."""
        desk = self._desk
        key = (peer, message.id)
        if key in self._receptions:
            self._say_again(self._receptions[key])
            return
        expert = ExpertId(message.layer, message.index)
        if key in self._ended:
            reason = self._ended[key]
            if reason is not None:
                desk.send(peer, MigrationRefused(message.id, reason))
            return
        if expert not in desk.book or desk.expert_bytes[expert] != message.size_bytes:
            desk.send(peer, MigrationRefused(message.id, "unknown"))
            return
        desk.book.see(expert, message.slot, Claim(message.epoch, peer, generation))
        refusal = self._refusal(expert, message.slot)
        if refusal is None and not desk.book[expert].resident and not self._intakes.start(expert, preferred=peer):
            if self._custodian.make_room(expert) or self._custodian.is_making_room:
                self._put_off(key, generation, message)
                return
            refusal = "room"
        if refusal is not None:
            desk.send(peer, MigrationRefused(message.id, refusal))
            return
        now = desk.now
        reception = Reception(message.id, expert, message.slot, peer, now, now + desk.config.silence_s)
        self._receptions[key] = reception
        desk.receiving.add(expert)
        if desk.book[expert].resident:
            self._mint(reception)
        else:
            self._say_again(reception)

    def room_is_free(self) -> None:
        """Memory of something dropped is free: take up offers that waited for it, before anything else does."""
        waiting, self._waiting = self._waiting, {}
        for (peer, _), (generation, message) in waiting.items():
            self.offered(peer, generation, message)

    def received(self, peer: NodeId, message: MigrationAcked | MigrationCancelled) -> None:
        """The donor has released its claim, or thought better of it."""
        self._waiting.pop((peer, message.id), None)
        reception = self._receptions.get((peer, message.id))
        if reception is None:
            return
        happened = ReceiverInput.ACKED if isinstance(message, MigrationAcked) else ReceiverInput.CANCELLED
        if reception.step(happened):
            self._end(reception, "failed", "cancelled by the donor", tell=False)

    def loaded(self, expert: ExpertId) -> None:
        """An expert has become resident."""
        for reception in list(self._receptions.values()):
            if reception.expert == expert and reception.state is ReceiverState.FETCHING:
                self._mint(reception)

    def intake_failed(self, expert: ExpertId) -> None:
        """An expert cannot be brought in."""
        for reception in list(self._receptions.values()):
            if reception.expert == expert and reception.step(ReceiverInput.FAILED):
                self._end(reception, "failed", "the weights did not come in")

    def refuse_all(self) -> None:
        """This node is leaving: what is still on its way in would be promised here after the handing over."""
        for reception in list(self._receptions.values()):
            if reception.step(ReceiverInput.FAILED):
                self._end(reception, "leaving", "this node is leaving")

    def tick(self) -> None:
        """Repeat what was said, and give up what makes no progress."""
        desk = self._desk
        for reception in list(self._receptions.values()):
            stored_bytes = self._intakes.stored_bytes(reception.expert)
            if reception.state is ReceiverState.FETCHING and stored_bytes > reception.stored_bytes:
                reception.stored_bytes = stored_bytes
                reception.deadline_s = desk.now + desk.config.silence_s
            if reception.deadline_s <= desk.now and reception.step(ReceiverInput.TIMEOUT):
                self._end(reception, "failed", "no progress")
            elif reception.repeat_s <= desk.now:
                self._say_again(reception)

    def next_s(self) -> float:
        """When `tick` has something to do."""
        return min((min(r.repeat_s, r.deadline_s) for r in self._receptions.values()), default=float("inf"))

    def _refusal(self, expert: ExpertId, slot: int) -> RefusalReason | None:
        """Why an offer cannot be taken, room aside."""
        desk = self._desk
        record = desk.book[expert]
        if desk.leaving:
            return "leaving"
        if record.claim is not None and record.slot != slot:
            return "custodian"
        if len(self._receptions) >= desk.config.migrations_max or expert in desk.receiving:
            return "busy"
        return None

    def _put_off(self, key: Key, generation: int, message: MigrationOffer) -> None:
        """Look at an offer again when there is room; should that be missed, the donor offers again by itself."""
        if len(self._waiting) < self._desk.config.migrations_max:
            self._waiting[key] = (generation, message)

    def _mint(self, reception: Reception) -> None:
        """The weights are here: promise them, and say so."""
        desk = self._desk
        record = desk.book[reception.expert]
        if not desk.book.rule.may_mint(record, reception.slot):
            reception.step(ReceiverInput.FAILED)
            self._end(reception, "custodian", "this node has become custodian in another slot")
            return
        self._custodian.mint(reception.expert, reception.slot)
        reception.step(ReceiverInput.LOADED)
        reception.deadline_s = desk.now + desk.config.claim_s
        self._say_again(reception)

    def _say_again(self, reception: Reception) -> None:
        """RESERVE while the weights come in, then CLAIM."""
        desk = self._desk
        expert = reception.expert
        reception.repeat_s = desk.now + desk.config.progress_s
        if reception.state is ReceiverState.FETCHING:
            desk.send(reception.peer, MigrationReserved(reception.id, self._intakes.stored_bytes(expert)))
            return
        record = desk.book[expert]
        if record.claim is not None and record.slot == reception.slot:
            claimed = MigrationClaimed(reception.id, expert.layer, expert.index, record.slot, record.claim.epoch)
            desk.send(reception.peer, claimed)

    def _end(self, reception: Reception, refusal: RefusalReason, reason: str, *, tell: bool = True) -> None:
        desk = self._desk
        taken = reception.state is ReceiverState.TAKEN
        key = (reception.peer, reception.id)
        del self._receptions[key]
        desk.receiving.discard(reception.expert)
        desk.agenda.add([reception.expert])
        self._ended[key] = None if taken else refusal
        while len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)
        if not taken and tell:
            desk.send(reception.peer, MigrationRefused(reception.id, refusal))
        outcome: Literal["taken", "forgotten"] = "taken" if taken else "forgotten"
        desk.out.append(
            MigrationEnded(reception.id, reception.expert, reception.peer, outcome, "" if taken else reason)
        )
