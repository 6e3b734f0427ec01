"""Migration: custody of one expert moves from a donor to a receiver. The two machines as tables.

    donor                                        receiver
    OFFERED     -- OFFER ------------------->
                <------------------- RESERVE --  FETCHING      room reserved; own disk first, then
    SERVING     -- CHUNK ... --------------->                  pieces from the donor or any holder
                                                  (VERIFY)     digest of the whole unit, resident
                <--------------------- CLAIM --  CLAIMED       minted and on disk, then sent
    CONFIRMING  -- does it stand? ---------->
                <---------------------- yes --
    (release)   -- ACK --------------------->    TAKEN
    DRAINING                                     custodian
    (DROP)      when calls at work have ended
    GIVEN

Rules of this file:

- Every message can be lost, repeated, late, and come from a life that is over. All are idempotent by ``(donor, id)``;
  OFFER, RESERVE and CLAIM are repeated while they matter; the end of a migration is remembered and told again.
- CLAIM by itself releases nothing, for it may be old. The donor asks the receiver, as it would about any greater claim,
  and the custody rule decides. If the donor gives up before that (KEPT), it loses nothing, and neither if both ends do:
  two claims in one slot are a thing that custodians clear up by themselves.
- Any timeout before CLAIM means that the donor simply keeps the expert. What came in stays on the receiver's disk, so
  that the next attempt goes on there.
- A receiver's room is reserved before it says RESERVE, and given back when the migration is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from meshmoe.core.ids import ExpertId, NodeId


class DonorState(Enum):
    """Where a donor is; the last two are ends."""

    OFFERED = auto()
    SERVING = auto()
    CONFIRMING = auto()
    DRAINING = auto()
    GIVEN = auto()
    KEPT = auto()


class DonorInput(Enum):
    """What can happen to a donor."""

    RESERVED = auto()
    REFUSED = auto()
    CLAIMED = auto()
    RELEASED = auto()
    """The custody rule has released our claim."""
    DROPPED = auto()
    """The expert is gone from memory, or is needed here for another reason."""
    TIMEOUT = auto()


DONOR: dict[DonorState, dict[DonorInput, DonorState]] = {
    DonorState.OFFERED: {
        DonorInput.RESERVED: DonorState.SERVING,
        DonorInput.REFUSED: DonorState.KEPT,
        DonorInput.CLAIMED: DonorState.CONFIRMING,
        DonorInput.RELEASED: DonorState.KEPT,  # on another node's claim: there is nothing to give any more
        DonorInput.TIMEOUT: DonorState.KEPT,
    },
    DonorState.SERVING: {
        DonorInput.RESERVED: DonorState.SERVING,
        DonorInput.REFUSED: DonorState.KEPT,
        DonorInput.CLAIMED: DonorState.CONFIRMING,
        DonorInput.RELEASED: DonorState.KEPT,
        DonorInput.TIMEOUT: DonorState.KEPT,
    },
    DonorState.CONFIRMING: {
        DonorInput.CLAIMED: DonorState.CONFIRMING,
        DonorInput.RELEASED: DonorState.DRAINING,
        DonorInput.TIMEOUT: DonorState.KEPT,
    },
    DonorState.DRAINING: {
        DonorInput.CLAIMED: DonorState.DRAINING,  # our ACK was lost
        DonorInput.DROPPED: DonorState.GIVEN,
        DonorInput.TIMEOUT: DonorState.GIVEN,
    },
}
"""What is not in the table changes nothing: it is old, or repeated."""


class ReceiverState(Enum):
    """Where a receiver is; the last two are ends."""

    FETCHING = auto()
    CLAIMED = auto()
    TAKEN = auto()
    FORGOTTEN = auto()


class ReceiverInput(Enum):
    """What can happen to a receiver."""

    LOADED = auto()
    """Resident and verified, and the claim is minted."""
    FAILED = auto()
    """The weights cannot be had, or the claim may not be minted."""
    CANCELLED = auto()
    ACKED = auto()
    TIMEOUT = auto()


RECEIVER: dict[ReceiverState, dict[ReceiverInput, ReceiverState]] = {
    ReceiverState.FETCHING: {
        ReceiverInput.LOADED: ReceiverState.CLAIMED,
        ReceiverInput.FAILED: ReceiverState.FORGOTTEN,
        ReceiverInput.CANCELLED: ReceiverState.FORGOTTEN,
        ReceiverInput.TIMEOUT: ReceiverState.FORGOTTEN,
    },
    ReceiverState.CLAIMED: {
        ReceiverInput.ACKED: ReceiverState.TAKEN,
        ReceiverInput.TIMEOUT: ReceiverState.TAKEN,  # we are custodian; the donor will find out
    },
}


@dataclass(slots=True)
class Donation:
    """One migration at its donor.

    Attributes:
        id: Of the migration.
        expert: Its subject.
        slot: Of the claim that moves.
        peer: The receiver.
        repeat_s: When to say OFFER again.
        deadline_s: When to give up.
        state: See `DONOR`.
        offers: How often OFFER was said.
    """

    id: int
    expert: ExpertId
    slot: int
    peer: NodeId
    repeat_s: float
    deadline_s: float
    state: DonorState = DonorState.OFFERED
    offers: int = 1

    def step(self, happened: DonorInput) -> bool:
        """Follow the table; returns whether it says anything about this."""
        after = DONOR.get(self.state, {}).get(happened)
        self.state = after or self.state
        return after is not None


@dataclass(slots=True)
class Reception:
    """One migration at its receiver.

    Attributes:
        id: Of the migration, unique together with ``peer``.
        expert: Its subject.
        slot: In which to mint.
        peer: The donor.
        repeat_s: When to say RESERVE or CLAIM again.
        deadline_s: When to give up; every piece that comes in puts it off.
        state: See `RECEIVER`.
        stored_bytes: How much there was when the deadline was last put off.
    """

    id: int
    expert: ExpertId
    slot: int
    peer: NodeId
    repeat_s: float
    deadline_s: float
    state: ReceiverState = ReceiverState.FETCHING
    stored_bytes: int = 0

    def step(self, happened: ReceiverInput) -> bool:
        """Follow the table; returns whether it says anything about this."""
        after = RECEIVER.get(self.state, {}).get(happened)
        self.state = after or self.state
        return after is not None
