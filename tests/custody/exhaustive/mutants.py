"""Broken custody rules, each of which the exhaustive check must catch: a checker that passes everything proves nothing.

Each is the product's rule with one thing wrong, as an implementer in a hurry would get it wrong. ``mischief`` is what a
mutant does of its own accord; the product's rule has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from meshmoe.core.ids import NodeId
from meshmoe.custody.claims import Ask, AskId, Claim, Custody, Life
from meshmoe.custody.rule import CustodyRule
from tests.custody.exhaustive.model import Bounds

Published = frozenset[tuple[int, Claim]]


class MintBeforeLoad(CustodyRule):
    """Promises weights that are still on their way."""

    def may_mint(self, custody: Custody, slot: int) -> bool:
        return custody.claim is None or custody.slot == slot


class DropOnOffer(CustodyRule):
    """Takes the weights as handed over once they were sent."""

    def mischief(self, custody: Custody, published: Published) -> Iterator[tuple[str, Custody]]:
        if custody.claim is not None:
            yield "sends its weights to somebody and releases its claim", custody._replace(claim=None, ask=None)


class DropOnHearsay(CustodyRule):
    """Releases its claim on hearing of a greater one, without asking whether that stands."""

    def mischief(self, custody: Custody, published: Published) -> Iterator[tuple[str, Custody]]:
        for slot, claim in sorted(published):
            if self.may_ask(custody, slot, claim, slots=2):
                yield f"hears of claim {claim.epoch} by {claim.node} and releases its own", custody._replace(claim=None)


class AnswerWhileAsking(CustodyRule):
    """DESIGN's rule to the letter: a node whose own question is out answers others."""

    def answer(self, custody: Custody, slot: int) -> Claim | None:
        return custody.claim if custody.slot == slot else None


class DropOnAnyClaim(AnswerWhileAsking):
    """DESIGN's rule, but any standing claim will do for a release, not only one greater than all that I minted."""

    def may_ask(self, custody: Custody, slot: int, claim: Claim, slots: int) -> bool:
        return custody.claim is not None and claim.node != custody.claim.node and slot == custody.slot

    def confirmed(
        self, custody: Custody, ask_id: AskId, slot: int, peer: NodeId, claim: Claim, now_s: float
    ) -> Custody:
        ask = custody.ask
        if ask is None or (ask_id, slot, peer) != (ask.id, ask.slot, ask.peer):
            return custody
        return custody._replace(claim=None, ask=None)


class OrderIgnored(DropOnAnyClaim):
    """Any standing claim will do, but no answers while asking. Safe: see docs/decisions/custody-rule.md."""

    def answer(self, custody: Custody, slot: int) -> Claim | None:
        return CustodyRule.answer(self, custody, slot)


class BelieveLateAnswers(CustodyRule):
    """Sets no deadline: an answer is an answer, whenever it comes."""

    def expire(self, custody: Custody, now_s: float) -> Custody:
        return custody

    def confirmed(
        self, custody: Custody, ask_id: AskId, slot: int, peer: NodeId, claim: Claim, now_s: float
    ) -> Custody:
        return super().confirmed(custody, ask_id, slot, peer, claim, float("-inf"))


class TakeAnyAnswer(CustodyRule):
    """Does not look at which question an answer belongs to."""

    def confirmed(
        self, custody: Custody, ask_id: AskId, slot: int, peer: NodeId, claim: Claim, now_s: float
    ) -> Custody:
        return super().confirmed(custody, custody.ask.id if custody.ask else ask_id, slot, peer, claim, now_s)


class AskNumbersStartAnew(CustodyRule):
    """Numbers its questions from one in every life, and does not say which life asks."""

    def ask(self, custody: Custody, slot: int, peer: NodeId, life: Life, until_s: float) -> Custody:
        number = custody.asks + 1
        return custody._replace(ask=Ask(AskId(0, number), slot, peer, until_s), asks=number)


class SlotsConfused(CustodyRule):
    """Compares claims of different slots, so that one new holder relieves the custodians of both."""

    def may_ask(self, custody: Custody, slot: int, claim: Claim, slots: int) -> bool:
        return custody.claim is not None and claim.node != custody.claim.node and claim > custody.claim

    def confirmed(
        self, custody: Custody, ask_id: AskId, slot: int, peer: NodeId, claim: Claim, now_s: float
    ) -> Custody:
        ask = custody.ask
        if ask is None or custody.claim is None or ask_id != ask.id or claim <= custody.claim:
            return custody
        return custody._replace(claim=None, ask=None)


class TwoSlotsOneNode(CustodyRule):
    """Takes a second slot while its claim in the first one is relied on."""

    def may_mint(self, custody: Custody, slot: int) -> bool:
        return custody.resident


class AnswerForThePast(CustodyRule):
    """Answers with the last claim that it made, standing or not, as long as it has the weights."""

    def answer(self, custody: Custody, slot: int) -> Claim | None:
        return custody.seen[slot] if custody.resident and custody.minted[slot] else None


class DropThePromised(CustodyRule):
    """Evicts weights for want of room, claim or no claim."""

    def may_drop(self, custody: Custody) -> bool:
        return True


class PromisesOutliveTheCrash(CustodyRule):
    """Takes up its old claim from the disk, before its weights are back."""

    def restarted(self, custody: Custody, *, disk: bool) -> Custody:
        kept = Custody(minted=custody.minted)
        return kept._replace(claim=custody.claim, slot=custody.slot) if disk else Custody()


class ForgetMinted(CustodyRule):
    """Publishes its claims before they are written to disk."""

    def restarted(self, custody: Custody, *, disk: bool) -> Custody:
        return Custody()


class ClaimsWithoutGeneration(CustodyRule):
    """DESIGN's ``(epoch, node)``: what a node minted before it lost its disk it may mint again, as another promise."""

    def mint(self, custody: Custody, slot: int, life: Life) -> Custody:
        return super().mint(custody, slot, Life(life.node, 0))


class Mutant(NamedTuple):
    """A broken rule, and the smallest world in which it is caught."""

    name: str
    rule: CustodyRule
    bounds: Bounds


MUTANTS = (
    Mutant("mint-before-load", MintBeforeLoad(), Bounds()),
    Mutant("drop-on-offer", DropOnOffer(), Bounds()),
    Mutant("drop-on-hearsay", DropOnHearsay(), Bounds()),
    Mutant("drop-on-any-claim", DropOnAnyClaim(), Bounds(crashes=0)),
    Mutant("answer-while-asking", AnswerWhileAsking(), Bounds()),
    Mutant("believe-late-answers", BelieveLateAnswers(), Bounds(epochs=1, stale_answers=True)),
    Mutant("take-any-answer", TakeAnyAnswer(), Bounds(epochs=1, asks=2, stale_answers=True)),
    Mutant("ask-numbers-start-anew", AskNumbersStartAnew(), Bounds(epochs=1, crashes=2, stale_answers=True)),
    Mutant("slots-confused", SlotsConfused(), Bounds(crashes=0)),
    Mutant("two-slots-one-node", TwoSlotsOneNode(), Bounds(crashes=0)),
    Mutant("answer-for-the-past", AnswerForThePast(), Bounds()),
    Mutant("drop-the-promised", DropThePromised(), Bounds()),
    Mutant("promises-outlive-the-crash", PromisesOutliveTheCrash(), Bounds()),
    Mutant("forget-minted", ForgetMinted(), Bounds()),
    Mutant("claims-without-generation", ClaimsWithoutGeneration(), Bounds()),
)
