"""What the runtime tells the custody machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip import NodeView
from meshmoe.membership import Received, Tick


class ViewChanged(msgspec.Struct, frozen=True):
    """What gossip shows of all present nodes: a copy of `View.nodes`. This node's own entry is not looked at."""

    nodes: Mapping[NodeId, NodeView]


class Want(msgspec.Struct, frozen=True):
    """Experts that placement wants resident here beside what custody needs, most wanted first; replaces the last."""

    experts: tuple[ExpertId, ...]


class Planned(msgspec.Struct, frozen=True):
    """Who should hold what by the plans that nodes have agreed on, the owner first; replaces the last.

    Empty while there are no such plans: then custody goes by rendezvous hashing alone.
    """

    holders: Mapping[ExpertId, tuple[NodeId, ...]]


class OnDisk(msgspec.Struct, frozen=True):
    """Experts whose whole unit is on the local disk; replaces what was told earlier."""

    experts: frozenset[ExpertId]


class UnitOpened(msgspec.Struct, frozen=True):
    """Answer to `OpenUnit`: so much of the unit is on disk; equal numbers mean all of it."""

    expert: ExpertId
    offset_bytes: int
    total_bytes: int


class PieceArrived(msgspec.Struct, frozen=True):
    """A piece came in; the runtime holds its bytes until the effects of this event say what to do with them."""

    expert: ExpertId
    peer: NodeId
    offset: int
    length: int


class PieceFailed(msgspec.Struct, frozen=True):
    """The peer lacks the unit, or cannot be reached."""

    expert: ExpertId
    peer: NodeId


class UnitLoaded(msgspec.Struct, frozen=True):
    """Answer to `LoadUnit`: verified and resident."""

    expert: ExpertId


class UnitFailed(msgspec.Struct, frozen=True):
    """Answer to `OpenUnit` or `LoadUnit`: damaged (and deleted), or the disk failed. Nothing of it is in memory."""

    expert: ExpertId
    reason: str


class Dropped(msgspec.Struct, frozen=True):
    """Answer to `Drop`: the memory is free."""

    expert: ExpertId


class Give(msgspec.Struct, frozen=True):
    """Begin a migration: hand custody of an expert, with the weights, to ``peer``. Refused at once if it cannot be."""

    expert: ExpertId
    peer: NodeId


class SetCapacity(msgspec.Struct, frozen=True):
    """The node's budget for experts has changed. What is promised stays, even above it."""

    capacity_bytes: int


class SetRate(msgspec.Struct, frozen=True):
    """How fast weights may come in from now on (`meshmoe.custody.throttle.next_rate`)."""

    bytes_per_s: float


class Leave(msgspec.Struct, frozen=True):
    """Hand over everything that would be missed; ends with `LeaveFinished`."""


UnitEvent = UnitOpened | PieceArrived | PieceFailed | UnitLoaded | UnitFailed | Dropped
CustodyEvent = (
    Tick | Received | ViewChanged | Want | Planned | OnDisk | UnitEvent | Give | SetCapacity | SetRate | Leave
)

RefusalReason = Literal["room", "custodian", "leaving", "busy", "unknown", "failed"]
