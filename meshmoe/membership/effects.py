"""What the membership machine asks of the runtime, in the order in which it is to be done.

For each life ``(node, generation)`` the runtime sees: `MemberAlive` (or `MemberSuspect`, if that is how this node first
hears of it), then any number of `MemberSuspect`, `MemberAlive` and `MemberDead` (a death can be refuted: partitions
heal), and at the end `MemberLeft`, or `MemberForgotten` long after a death or farewell. A later life of the same name
is preceded by `MemberDead` of the earlier one, if that was not gone already. After `MemberDead` and `MemberLeft` a
life is not present; after `MemberAlive` and `MemberSuspect` it is.
"""

from __future__ import annotations

import msgspec

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.core.messages import Message
from meshmoe.membership.member import Member


class Connect(msgspec.Struct, frozen=True):
    """Open (or re-point) the connections to a peer; always before the first `Send` to it."""

    peer: NodeId
    endpoints: Endpoints


class Disconnect(msgspec.Struct, frozen=True):
    """Close the connections to a peer that left or is forgotten."""

    peer: NodeId


class Send(msgspec.Struct, frozen=True):
    """Post a message on the control lane; it may be lost."""

    peer: NodeId
    message: Message


class MemberAlive(msgspec.Struct, frozen=True):
    """A member joined, refuted a suspicion, came back from the dead, or moved to other endpoints."""

    member: Member


class MemberSuspect(msgspec.Struct, frozen=True):
    """A member has been silent to somebody; it still counts as present."""

    member: Member


class MemberDead(msgspec.Struct, frozen=True):
    """A member is held for dead, on this node's own evidence; or its name has begun a later life."""

    member: Member


class MemberLeft(msgspec.Struct, frozen=True):
    """A member has said farewell."""

    member: Member


class MemberForgotten(msgspec.Struct, frozen=True):
    """A member that was gone for long is no longer remembered."""

    member: Member


class NameConflict(msgspec.Struct, frozen=True):
    """Two nodes live under one name.

    On the node whose own name it is: ``yields`` says that a later life than this one exists, so this one must stop (or
    come back with a higher generation, if ``other`` is dead or left and this node's clock was set back); the machine
    has fallen silent. Elsewhere it is a warning for people.
    """

    node: NodeId
    generation: int
    """Of the earlier life."""
    other: Member
    """The later life."""
    yields: bool = False


class LeaveFinished(msgspec.Struct, frozen=True):
    """Everybody has been told; the process may end."""


MembershipEffect = (
    Connect
    | Disconnect
    | Send
    | MemberAlive
    | MemberSuspect
    | MemberDead
    | MemberLeft
    | MemberForgotten
    | NameConflict
    | LeaveFinished
)
