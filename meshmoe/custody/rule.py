"""The custody rule: when a claim may be minted, and when it may be released. Everything else is policy.

The rule in words:

1. **Mint** only for weights that are resident and whose digest was verified; in at most one slot of an expert at a
   time; with an epoch above every epoch seen in the slot, and above every one that this node ever minted there.
2. **Answer** a question about a slot with the claim that stands there *now*, never with one that stood once, never on
   the ground of merely holding the weights, and never while a question of one's own is out.
3. **Release** a claim only when a question that this life asked is answered within the suspicion timeout, by its
   addressee, with a greater claim of the same slot; or, when one slot is all that is wanted, with any claim of another.
4. **Drop** weights only while no claim stands.

Why it is safe. Call a slot *hit* when a custodian of it crashes, and let t be the last time that it was hit.
Questions that were out at t may be answered by the dead; call them old. A custodian whose question is old answers
nobody, so what it may do on account of the dead misleads no one else. Now let A be all claims that stood in the slot
since t and were not released on old questions. A later release needs a greater claim that stood after t at somebody
whose own question was not out, hence one of A; so the greatest of A is never released, and its minter lives and holds
the weights. When old questions have expired, whatever stands in the slot is in A: one standing claim then is enough,
until the next hit. A node stands in one slot only, so n crashes hit at most n slots: with fewer crashes than slots in
a repair window, some slot is not hit and keeps its custodian. A *repair window* of an expert lasts from the crash of
a custodian until every slot has a standing claim again, and no shorter than the suspicion timeout.

When one slot is enough: whoever releases was answered by somebody who asks only later, if ever, so the last to ask
stays.

Nothing in the argument needs a disk, synchronous clocks, correct suspicion, delivery of any message, or truth in
gossip. The functions below are pure; the custodian calls them, and so does the exhaustive check
(tests/custody/exhaustive), which tries every order of events. They are methods of an object only so that the check
can be handed broken ones. What led to the rule, and the traces of its predecessors, are in
docs/decisions/custody-rule.md.
"""

from __future__ import annotations

from typing import TypeVar

from meshmoe.core.ids import NodeId
from meshmoe.custody.claims import Ask, AskId, Claim, Custody, Life

_T = TypeVar("_T")


class CustodyRule:
    """Transitions of a `Custody` record; each returns a new one. ``may_...`` guards tell what is allowed."""

    def loaded(self, custody: Custody) -> Custody:
        """The weights have become resident and their digest was verified."""
        return custody._replace(resident=True)

    def see(self, custody: Custody, slot: int, claim: Claim) -> Custody:
        """Somebody's claim was heard of, by whatever way."""
        if claim <= custody.seen[slot]:
            return custody
        return custody._replace(seen=_put(custody.seen, slot, claim))

    def may_mint(self, custody: Custody, slot: int) -> bool:
        """Whether a claim may be minted in ``slot``: a first one, or a greater one where ours stands already."""
        return custody.resident and (custody.claim is None or custody.slot == slot)

    def mint(self, custody: Custody, slot: int, life: Life) -> Custody:
        """Make the promise. The caller writes it to disk, then publishes it."""
        assert self.may_mint(custody, slot), "minted without weights, or in a second slot"
        epoch = max(custody.seen[slot].epoch, custody.minted[slot]) + 1
        claim = Claim(epoch, life.node, life.generation)
        return custody._replace(
            slot=slot,
            claim=claim,
            minted=_put(custody.minted, slot, epoch),
            seen=_put(custody.seen, slot, claim),
        )

    def may_ask(self, custody: Custody, slot: int, claim: Claim, slots: int) -> bool:
        """Whether to ask the minter of ``claim``, heard of in ``slot``, if it stands.

        Args:
            custody: The record.
            slot: Where the claim was made.
            claim: The claim heard of.
            slots: How many slots of the expert are wanted.
        """
        if custody.claim is None or claim.node == custody.claim.node:
            return False
        return claim > custody.claim if slot == custody.slot else slots == 1

    def ask(self, custody: Custody, slot: int, peer: NodeId, life: Life, until_s: float) -> Custody:
        """Put a question; an earlier one is forgotten."""
        number = custody.asks + 1
        return custody._replace(ask=Ask(AskId(life.generation, number), slot, peer, until_s), asks=number)

    def answer(self, custody: Custody, slot: int) -> Claim | None:
        """What to say to whoever asks about ``slot``: our claim there, if it stands and no question of ours is out."""
        return custody.claim if custody.slot == slot and custody.ask is None else None

    def confirmed(
        self, custody: Custody, ask_id: AskId, slot: int, peer: NodeId, claim: Claim, now_s: float
    ) -> Custody:
        """An answer came: release our claim if the rule allows.

        Args:
            custody: The record.
            ask_id: The question, as the answer repeats it.
            slot: The slot that the answer speaks of.
            peer: Who answered.
            claim: The claim that stood there when the peer answered.
            now_s: Time now.

        Returns:
            The record without a standing claim, or as it was.
        """
        ask = custody.ask
        if ask is None or custody.claim is None or now_s >= ask.until_s:
            return custody
        if (ask_id, slot, peer, peer) != (ask.id, ask.slot, ask.peer, claim.node):
            return custody
        if slot == custody.slot and claim <= custody.claim:
            return custody
        return custody._replace(claim=None, ask=None)

    def denied(self, custody: Custody, ask_id: AskId) -> Custody:
        """The answer to a question was no: it is over."""
        return custody._replace(ask=None) if custody.ask is not None and custody.ask.id == ask_id else custody

    def expire(self, custody: Custody, now_s: float) -> Custody:
        """Forget a question whose time is over."""
        if custody.ask is None or now_s < custody.ask.until_s:
            return custody
        return custody._replace(ask=None)

    def may_drop(self, custody: Custody) -> bool:
        """Whether the weights may go."""
        return custody.claim is None

    def dropped(self, custody: Custody) -> Custody:
        """The weights are gone."""
        assert self.may_drop(custody), "dropped weights that are promised"
        return custody._replace(resident=False)

    def restarted(self, custody: Custody, *, disk: bool) -> Custody:
        """What a new life knows of the old one's record: with a disk, the epochs minted; else nothing."""
        return Custody(minted=custody.minted) if disk else Custody()


def _put(values: tuple[_T, ...], index: int, value: _T) -> tuple[_T, ...]:
    return (*values[:index], value, *values[index + 1 :])
