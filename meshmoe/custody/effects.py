"""What the custody machine asks of the runtime, in the order in which it is to be done.

The order matters twice: `Persist` must be on disk before anything after it is begun, and a `Drop` comes before the
`OpenUnit` that needs its room. What concerns one unit (`OpenUnit`, `StorePiece`, `LoadUnit`, `AbandonUnit`) is done one
after the other.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.state import CustodyState
from meshmoe.gossip import Claims
from meshmoe.membership import Send


class Persist(msgspec.Struct, frozen=True):
    """Replace the state file (write, fsync, rename) before going on."""

    state: CustodyState


class Tell(msgspec.Struct, frozen=True):
    """Publish these claims by gossip, urgently."""

    claims: tuple[Claims, ...]


class OpenUnit(msgspec.Struct, frozen=True):
    """See how much of an expert's unit is on the local disk, and make ready to append; answer with `UnitOpened`."""

    expert: ExpertId


class RequestPiece(msgspec.Struct, frozen=True):
    """Send a ``UnitRequest`` on the bulk lane; answer with `PieceArrived` or `PieceFailed`."""

    expert: ExpertId
    peer: NodeId
    offset: int
    length: int


class StorePiece(msgspec.Struct, frozen=True):
    """Append the piece that has just arrived to the unit. A piece that is not answered by this is thrown away."""

    expert: ExpertId
    offset: int


class LoadUnit(msgspec.Struct, frozen=True):
    """Verify the unit's digest and make the expert resident; answer with `UnitLoaded` or `UnitFailed`.

    Room for it is reserved. A unit with a wrong digest is deleted from the store.
    """

    expert: ExpertId


class AbandonUnit(msgspec.Struct, frozen=True):
    """No more pieces of the unit are wanted; what is on disk of it stays there, for a later attempt."""

    expert: ExpertId


class Drop(msgspec.Struct, frozen=True):
    """Take no more calls for the expert, let those at work end, free the memory; answer with `Dropped`."""

    expert: ExpertId


class Adopted(msgspec.Struct, frozen=True):
    """For the log: this node has become custodian of an expert."""

    expert: ExpertId
    slot: int


class Released(msgspec.Struct, frozen=True):
    """For the log: this node is custodian of an expert no longer, since ``successor``'s claim stands."""

    expert: ExpertId
    slot: int
    successor: NodeId


class Lost(msgspec.Struct, frozen=True):
    """Nobody present holds or stores the expert: requests that need it must fail with its name."""

    expert: ExpertId


class Found(msgspec.Struct, frozen=True):
    """An expert that was lost can be had again."""

    expert: ExpertId


class MigrationEnded(msgspec.Struct, frozen=True):
    """A migration of this node's is over.

    Attributes:
        id: Of the migration.
        expert: Its subject.
        peer: The other end.
        outcome: ``given`` or ``kept`` at the donor, ``taken`` or ``forgotten`` at the receiver.
        reason: Why it was kept or forgotten.
    """

    id: int
    expert: ExpertId
    peer: NodeId
    outcome: Literal["given", "kept", "taken", "forgotten"]
    reason: str = ""


class LeaveProgress(msgspec.Struct, frozen=True):
    """So many of the experts in custody have been handed over."""

    done: int
    total: int


class LeaveFinished(msgspec.Struct, frozen=True):
    """All is handed over but ``kept``, with the reasons; the node may say farewell."""

    kept: tuple[tuple[ExpertId, str], ...] = ()


CustodyEffect = (
    Persist
    | Tell
    | Send
    | OpenUnit
    | RequestPiece
    | StorePiece
    | LoadUnit
    | AbandonUnit
    | Drop
    | Adopted
    | Released
    | Lost
    | Found
    | MigrationEnded
    | LeaveProgress
    | LeaveFinished
)
