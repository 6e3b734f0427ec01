"""The giving end of migrations: see `meshmoe.custody.migration` for the table that this file follows."""

from __future__ import annotations

from collections import OrderedDict

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.claims import Claim
from meshmoe.custody.desk import Desk
from meshmoe.custody.effects import MigrationEnded
from meshmoe.custody.messages import (
    MigrationAcked,
    MigrationCancelled,
    MigrationClaimed,
    MigrationOffer,
    MigrationRefused,
    MigrationReserved,
)
from meshmoe.custody.migration import Donation, DonorInput, DonorState
from meshmoe.custody.questions import Questions

ENDED_MAX = 1024
"""Ends remembered, for `Donors.outcome`."""

_LIFE_BITS = 20
"""Migrations of one life are numbered from ``generation << 20``, so that no two ever have the same id."""


class Donors:
    """All migrations that this node gives."""

    def __init__(self, desk: Desk, questions: Questions) -> None:
        self._desk = desk
        self._questions = questions
        self._donations: dict[int, Donation] = {}
        self._of_expert: dict[ExpertId, Donation] = {}
        self._next_id = desk.book.life.generation << _LIFE_BITS
        self._refusals: OrderedDict[tuple[ExpertId, NodeId], str] = OrderedDict()

    def __contains__(self, expert: ExpertId) -> bool:
        return expert in self._of_expert

    def __len__(self) -> int:
        return len(self._donations)

    def under_way(self) -> list[Donation]:
        """All of them."""
        return list(self._donations.values())

    def promised_bytes(self, peer: NodeId) -> int:
        """What ``peer`` has to find room for on our account."""
        before_claim = (DonorState.OFFERED, DonorState.SERVING)
        given = (d.expert for d in self._donations.values() if d.peer == peer and d.state in before_claim)
        return sum(self._desk.expert_bytes[expert] for expert in given)

    def refusal(self, expert: ExpertId, peer: NodeId) -> str | None:
        """Why the last migration of an expert to ``peer`` came to nothing; None if it did not."""
        return self._refusals.get((expert, peer))

    def forget_refusal(self, expert: ExpertId, peer: NodeId) -> None:
        """The next round may ask again."""
        self._refusals.pop((expert, peer), None)

    def give(self, expert: ExpertId, peer: NodeId) -> None:
        """Offer custody of an expert to ``peer``."""
        desk = self._desk
        record = desk.book.get(expert)
        donation = Donation(self._next_id, expert, 0, peer, desk.now, desk.now)
        self._next_id += 1
        problem = None
        if record is None or record.claim is None:
            problem = "not in this node's custody"
        elif expert in self._of_expert:
            problem = "being given already"
        elif peer not in desk.survey.nodes:
            problem = f"{peer} is not present"
        elif len(self._donations) >= desk.config.migrations_max:
            problem = "too many migrations at once"
        if problem is not None or record is None:
            desk.out.append(MigrationEnded(donation.id, expert, peer, "kept", problem or ""))
            return
        donation.slot = record.slot
        donation.repeat_s = desk.now + desk.config.offer_timeout_s
        donation.deadline_s = desk.now + desk.config.offer_timeout_s * desk.config.offer_tries
        self._donations[donation.id] = self._of_expert[expert] = donation
        self._refusals.pop((expert, peer), None)
        self._offer(donation)

    def received(
        self, peer: NodeId, generation: int, message: MigrationReserved | MigrationRefused | MigrationClaimed
    ) -> None:
        """The receiver speaks."""
        donation = self._donations.get(message.id)
        if donation is not None and donation.peer != peer:
            return
        if isinstance(message, MigrationClaimed):
            self._claimed(donation, peer, generation, message)
        elif donation is None:
            if isinstance(message, MigrationReserved):
                self._desk.send(peer, MigrationCancelled(message.id))  # ours is over, the receiver need not go on
        elif isinstance(message, MigrationReserved):
            if donation.step(DonorInput.RESERVED):
                donation.deadline_s = self._desk.now + self._desk.config.silence_s
                donation.repeat_s = donation.deadline_s
        elif donation.step(DonorInput.REFUSED):
            self._end(donation, message.reason)

    def released(self, expert: ExpertId) -> None:
        """Our claim was released, be it by a migration or otherwise."""
        donation = self._of_expert.get(expert)
        if donation is None or not donation.step(DonorInput.RELEASED):
            return
        desk = self._desk
        if donation.state is DonorState.KEPT:
            desk.send(donation.peer, MigrationCancelled(donation.id))
            self._end(donation, "released to another node")
            return
        desk.send(donation.peer, MigrationAcked(donation.id))
        donation.deadline_s = desk.now + desk.config.silence_s
        desk.wants.pop(expert, None)  # it was given away: placement must say so if it wants a replica back
        desk.agenda.add([expert])

    def settle(self, expert: ExpertId) -> None:
        """See whether the draining of an expert is over, after it was thought about."""
        donation = self._of_expert.get(expert)
        if donation is None or donation.state is not DonorState.DRAINING:
            return
        desk = self._desk
        gone = expert not in desk.ledger
        needed = desk.book[expert].claim is not None or expert in desk.wants
        # A leaving node drops nothing: it goes on answering calls until it goes, and must not wait here for that.
        if (gone or needed or desk.leaving) and donation.step(DonorInput.DROPPED):
            self._end(donation, "")

    def tick(self) -> None:
        """Repeat offers, and give up what has waited too long, or waits for a node that is gone or leaving."""
        desk = self._desk
        for donation in list(self._donations.values()):
            gone = donation.peer not in desk.survey.nodes or desk.survey.is_leaving(donation.peer)
            if gone and donation.state is not DonorState.DRAINING and donation.step(DonorInput.TIMEOUT):
                desk.send(donation.peer, MigrationCancelled(donation.id))
                self._end(donation, f"{donation.peer} has gone or is leaving")
            elif donation.deadline_s <= desk.now and donation.step(DonorInput.TIMEOUT):
                if donation.state is DonorState.KEPT:
                    desk.send(donation.peer, MigrationCancelled(donation.id))
                self._end(donation, f"{donation.peer} is silent")
            elif donation.repeat_s <= desk.now and donation.state is DonorState.OFFERED:
                donation.repeat_s = desk.now + desk.config.offer_timeout_s
                self._offer(donation)

    def next_s(self) -> float:
        """When `tick` has something to do."""
        return min(
            (
                min(d.deadline_s, d.repeat_s if d.state is DonorState.OFFERED else d.deadline_s)
                for d in self._donations.values()
            ),
            default=float("inf"),
        )

    def _claimed(self, donation: Donation | None, peer: NodeId, generation: int, message: MigrationClaimed) -> None:
        """The receiver has minted a claim, it says: ask it, as about any claim. The migration may be long over here."""
        desk = self._desk
        expert = ExpertId(message.layer, message.index)
        if expert not in desk.book or (donation is not None and donation.expert != expert):
            return
        record = desk.book[expert]
        if record.claim is None or record.slot != message.slot:
            desk.send(peer, MigrationAcked(message.id))  # nothing of ours stands there: again, if the first was lost
            return
        if donation is not None and donation.state in (DonorState.OFFERED, DonorState.SERVING):
            donation.deadline_s = desk.now + desk.config.claim_s
        if donation is not None:
            donation.step(DonorInput.CLAIMED)
        claim = Claim(message.epoch, peer, generation)
        desk.book.see(expert, message.slot, claim)
        self._questions.ask(expert, message.slot, claim)

    def _offer(self, donation: Donation) -> None:
        expert = donation.expert
        claim = self._desk.book[expert].claim
        assert claim is not None, "a donation whose claim is released has ended"
        size_bytes = self._desk.expert_bytes[expert]
        self._desk.send(
            donation.peer,
            MigrationOffer(donation.id, expert.layer, expert.index, donation.slot, claim.epoch, size_bytes),
        )

    def _end(self, donation: Donation, reason: str) -> None:
        given = donation.state is DonorState.GIVEN
        del self._donations[donation.id]
        del self._of_expert[donation.expert]
        self._desk.agenda.add([donation.expert])
        if not given:
            self._refusals[(donation.expert, donation.peer)] = reason
            while len(self._refusals) > ENDED_MAX:
                self._refusals.popitem(last=False)
        outcome = MigrationEnded(
            donation.id, donation.expert, donation.peer, "given" if given else "kept", "" if given else reason
        )
        self._desk.out.append(outcome)
