"""Messages of the failure detector. All travel on the control lane.

News (`MemberUpdate`) rides on every one of them, up to `MembershipConfig.piggyback_bytes`. Every list and number is
bounded by its type, so that a hostile message fails in validation.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.messages import Generation, Message, NodeName
from meshmoe.membership.member import MemberState

UPDATES_MAX = 64
"""Pieces of news on one probe, ack or gossip message."""

SYNC_MEMBERS_MAX = 256
"""Members in one `MemberSync`; a larger table takes several messages."""

ACCUSERS_MAX = 8
"""Accusers named with a suspicion: more than any number of confirmations that is waited for."""

Incarnation = Annotated[int, Meta(ge=0, lt=1 << 32)]
ProbeId = Annotated[int, Meta(ge=0, lt=1 << 32)]
Attempt = Annotated[int, Meta(ge=0, lt=256)]


class MemberUpdate(msgspec.Struct, frozen=True, array_like=True):
    """One piece of news about a member.

    Attributes:
        node: Whom it is about.
        generation: Which life.
        incarnation: Of that life.
        state: What the sender holds it for.
        endpoints: Where it listens; always given but with ``left``: a stranger, or a later life, is to be reached.
        accusers: Who found it silent, with ``suspect`` and ``dead``: what Lifeguard counts as confirmations.
    """

    node: NodeName
    generation: Generation
    incarnation: Incarnation
    state: MemberState
    endpoints: Endpoints | None = None
    accusers: Annotated[list[NodeName], Meta(max_length=ACCUSERS_MAX)] = []

    def __post_init__(self) -> None:
        """Checked at decoding too."""
        if self.state is MemberState.ALIVE and self.endpoints is None:
            raise ValueError("an alive member needs endpoints")


Updates = Annotated[list[MemberUpdate], Meta(max_length=UPDATES_MAX)]


class Probe(Message, frozen=True, tag="probe"):
    """Are you there? Answered with `ProbeAck` by whoever has the generation asked for."""

    id: ProbeId
    generation: Generation
    """Of the node that is meant: a later life must not answer for an earlier one."""
    origin: MemberUpdate
    """The sender itself, alive: who does not know it yet can answer."""
    attempt: Attempt = 0
    updates: Updates = msgspec.field(default_factory=list)


class ProbeAck(Message, frozen=True, tag="ack"):
    """I am here; or, from a relay, your target is."""

    id: ProbeId
    incarnation: Incarnation
    """Of the node that was probed, so that the answer itself refutes an older accusation."""
    attempt: Attempt = 0
    """Copied from the probe: tells which sending the answer belongs to, so that the round trip is measured right."""
    updates: Updates = msgspec.field(default_factory=list)


class ProbeRequest(Message, frozen=True, tag="probe-for-me"):
    """Please probe ``target`` and tell me (SWIM's ping-req)."""

    id: ProbeId
    target: NodeName
    generation: Generation
    budget_ms: Annotated[int, Meta(ge=1, le=600_000)]
    """How long the asker waits; a nack is due before it is over."""
    updates: Updates = msgspec.field(default_factory=list)


class ProbeNack(Message, frozen=True, tag="nack"):
    """From a relay: your request came through, the target has not answered me (Lifeguard, LHA-Probe)."""

    id: ProbeId
    updates: Updates = msgspec.field(default_factory=list)


class MemberNews(Message, frozen=True, tag="news"):
    """Nothing but news: what did not ride on probes in time, and farewells."""

    updates: Annotated[list[MemberUpdate], Meta(min_length=1, max_length=UPDATES_MAX)]


class MemberSync(Message, frozen=True, tag="members"):
    """The sender's table, or a part of it."""

    members: Annotated[list[MemberUpdate], Meta(max_length=SYNC_MEMBERS_MAX)]
    wants_reply: bool = False


MEMBERSHIP_MESSAGES = (Probe, ProbeAck, ProbeRequest, ProbeNack, MemberNews, MemberSync)
"""For `meshmoe.wire`, which joins them to its union."""


def update_bytes(update: MemberUpdate) -> int:
    """An upper estimate of the update's size in msgpack."""
    size = 19 + len(update.node) + sum(len(accuser) + 2 for accuser in update.accusers)
    return size + (14 + len(update.endpoints.host) if update.endpoints is not None else 0)
