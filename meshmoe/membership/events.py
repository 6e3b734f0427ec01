"""What the runtime tells the membership machine."""

from __future__ import annotations

import msgspec

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.core.messages import Message


class Tick(msgspec.Struct, frozen=True):
    """The time of `Membership.next_deadline` has come. Ticking early is harmless, ticking late counts as lag."""


class Received(msgspec.Struct, frozen=True):
    """A message came in, from a sender whose name and generation the transport vouches for."""

    sender: NodeId
    generation: int
    message: Message


class Learned(msgspec.Struct, frozen=True):
    """The runtime has met a member itself (Hello and Welcome): it is alive, and here is where it listens."""

    node: NodeId
    generation: int
    endpoints: Endpoints


class Doubted(msgspec.Struct, frozen=True):
    """Something else than a probe makes the runtime doubt a member (its connection broke): probe it now."""

    node: NodeId


class LocalHealth(msgspec.Struct, frozen=True):
    """The runtime's measure of how late its event loop runs, as often as it likes; small values cost nothing."""

    loop_late_s: float


class Leave(msgspec.Struct, frozen=True):
    """Say farewell to everybody; the machine answers with `LeaveFinished` when it has."""


MembershipEvent = Tick | Received | Learned | Doubted | LocalHealth | Leave
