"""Every number of custody and migration, with what it trades.

The one number that safety rests on is ``ask_timeout_s``: it is the suspicion timeout of the custody rule, and thereby
the least length of a repair window (docs/decisions/custody-rule.md). All others are speed against waste.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshmoe.custody.claims import SLOTS_MAX


@dataclass(frozen=True, slots=True)
class CustodyConfig:
    """Knobs of `meshmoe.custody.CustodyMachine`; the same on all nodes.

    Attributes:
        slots: Custodians wanted for an expert, on distinct nodes, wherever capacity allows. One survives no crash.
        ask_timeout_s: A question whether a claim stands is answered within this time, or not believed. No longer than
            membership takes to declare a silent node dead (5 s in the ``lan`` preset at 10 nodes).
        ask_retry_s: Pause before a custodian asks again about the same expert. While a question is out its asker
            answers none, so it must leave time for others' questions.
        grace_s: A slot must have been vacant in this node's view so long before anyone fills it: longer than urgent
            gossip takes, so that claims on their way are not taken for missing ones.
        note_s: What a minter has told in person is believed so long, until gossip shows it too.
        stagger_s, stagger_bytes_per_s: Of those who could fill a vacant slot each waits
            ``stagger_s + expert_bytes / stagger_bytes_per_s`` longer than the one before it in the order of succession.
            Shorter repairs sooner after a second failure, and lets more nodes load the same expert for nothing.
        lost_after_s: An expert that nobody present holds or stores is reported as lost after this time.
        ease_after_s: A node that is to fill a slot and has had no room for it so long gives another expert away, if
            somebody has room.
        intakes_max: Experts on their way in at once.
        credit: Pieces requested ahead, of all intakes together: 4 MiB in flight fill 500 Mbit/s at 60 ms.
        piece_bytes: Of one request; the wire allows no more than this.
        piece_timeout_s: A piece that has not come by then is asked for again.
        intake_tries: Pieces lost in a row, or units found damaged, before an intake is given up.
        intake_retry_s: Pause before an expert that could not be brought in is tried again.
        offer_timeout_s, offer_tries: An offer without an answer is repeated so often.
        progress_s: A receiver tells the donor how far it is, so often.
        silence_s: A donor that heard nothing for so long keeps the expert; a receiver that got no byte for so long
            forgets the migration. Longer than a reconnect takes.
        claim_s: A donor that has not managed to have the claim confirmed by then leaves it to the custodian's own
            questions; a receiver stops repeating its claim.
        migrations_max: Given away at once, and received at once.
        leave_retry_s: A leaving node whose offers were all refused goes round again after this time.
        leave_rounds: So often; then it says what it could not hand over.
    """

    slots: int = SLOTS_MAX
    ask_timeout_s: float = 3.0
    ask_retry_s: float = 1.0
    grace_s: float = 1.0
    note_s: float = 5.0
    stagger_s: float = 1.0
    stagger_bytes_per_s: float = 5_000_000.0
    lost_after_s: float = 10.0
    ease_after_s: float = 3.0
    intakes_max: int = 4
    credit: int = 4
    piece_bytes: int = 1 << 20
    piece_timeout_s: float = 20.0
    intake_tries: int = 6
    intake_retry_s: float = 2.0
    offer_timeout_s: float = 2.0
    offer_tries: int = 3
    progress_s: float = 2.0
    silence_s: float = 30.0
    claim_s: float = 30.0
    migrations_max: int = 4
    leave_retry_s: float = 2.0
    leave_rounds: int = 3

    def __post_init__(self) -> None:
        """Refuse combinations in which the protocol cannot work."""
        assert 1 <= self.slots <= SLOTS_MAX
        assert self.ask_retry_s > 0 and self.ask_timeout_s > 0
        assert self.progress_s < self.silence_s, "a donor would give up a receiver that is at work"
        assert self.piece_bytes <= 1 << 20 and self.credit >= 1 and self.intakes_max >= 1

    def stagger_of_s(self, expert_bytes: int) -> float:
        """How much longer each successor waits than the one before it."""
        return self.stagger_s + expert_bytes / self.stagger_bytes_per_s


DEFAULT = CustodyConfig()
