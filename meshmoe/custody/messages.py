"""Messages of custody and migration. All travel on the control lane; weights travel as ``UnitChunk`` on the bulk lane.

Claims themselves are spread by gossip. What is sent here is what must come from the claim's minter in person.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from meshmoe.core.messages import ByteCount, CallId, ExpertIndex, Generation, LayerIndex, Message
from meshmoe.custody.claims import Epoch, Slot
from meshmoe.custody.events import RefusalReason

BATCH_MAX = 256
"""Questions, or answers, in one message: about 3 kB."""

AskNumber = Annotated[int, Meta(ge=1, lt=1 << 53)]


class Question(msgspec.Struct, frozen=True, array_like=True):
    """Does a claim of yours stand in this slot? ``number`` names the question."""

    layer: LayerIndex
    index: ExpertIndex
    slot: Slot
    number: AskNumber


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """Yes, the one of this epoch; or no (None)."""

    layer: LayerIndex
    index: ExpertIndex
    slot: Slot
    number: AskNumber
    epoch: Epoch | None


class ClaimQuestions(Message, frozen=True, tag="stands"):
    """Questions of one life to the minter of the claims.

    Attributes:
        generation: The asking life, repeated in the answers.
        questions: At most one for each expert.
    """

    generation: Generation
    questions: Annotated[list[Question], Meta(min_length=1, max_length=BATCH_MAX)]


class ClaimAnswers(Message, frozen=True, tag="standing"):
    """Answers, true when they were sent."""

    generation: Generation
    answers: Annotated[list[Standing], Meta(min_length=1, max_length=BATCH_MAX)]


class MigrationOffer(Message, frozen=True, tag="offer"):
    """OFFER: take custody of this expert from me. Repeated with the same ``id`` while unanswered.

    Attributes:
        id: Unique among all migrations that the donor ever offered.
        layer: Of the expert.
        index: Of the expert.
        slot: In which the receiver is to mint a claim.
        epoch: Of the donor's claim, which the receiver's must exceed.
        size_bytes: Room that the expert takes.
    """

    id: CallId
    layer: LayerIndex
    index: ExpertIndex
    slot: Slot
    epoch: Epoch
    size_bytes: ByteCount


class MigrationReserved(Message, frozen=True, tag="reserved"):
    """RESERVE: there is room, the weights are coming in; repeated while they do."""

    id: CallId
    done_bytes: ByteCount = 0


class MigrationRefused(Message, frozen=True, tag="refused"):
    """No, or not any more. The donor keeps the expert."""

    id: CallId
    reason: RefusalReason


class MigrationClaimed(Message, frozen=True, tag="claimed"):
    """CLAIM: the weights are loaded, and this claim is minted. Repeated until acknowledged."""

    id: CallId
    layer: LayerIndex
    index: ExpertIndex
    slot: Slot
    epoch: Epoch


class MigrationAcked(Message, frozen=True, tag="acked"):
    """ACK: the donor has had the claim confirmed, and released its own."""

    id: CallId


class MigrationCancelled(Message, frozen=True, tag="cancelled"):
    """The donor has thought better of it. Means nothing once the claim is minted."""

    id: CallId


CUSTODY_MESSAGES = (
    ClaimQuestions,
    ClaimAnswers,
    MigrationOffer,
    MigrationReserved,
    MigrationRefused,
    MigrationClaimed,
    MigrationAcked,
    MigrationCancelled,
)
