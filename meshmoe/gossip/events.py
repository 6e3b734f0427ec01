"""What goes into the gossip machine and what comes out.

The runtime passes on every `MemberAlive`, `MemberSuspect`, `MemberDead`, `MemberLeft` and `MemberForgotten` that
membership emits, after it has done the `Connect` that came before it.
"""

from __future__ import annotations

import msgspec

from meshmoe.gossip.values import Value
from meshmoe.membership import (
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLeft,
    MemberSuspect,
    Received,
    Send,
    Tick,
)


class Publish(msgspec.Struct, frozen=True):
    """Set some of this node's own entries. Values equal to what is already told cost nothing.

    Attributes:
        values: In one step: they travel together.
        urgent: Whether to tell others at once. None: yes if holdings or claims change, or this node starts leaving.
    """

    values: tuple[Value, ...]
    urgent: bool | None = None


class Withdraw(msgspec.Struct, frozen=True):
    """Remove some of this node's own entries, by key (`meshmoe.gossip.key_of`)."""

    keys: tuple[str, ...]


class LaterLife(msgspec.Struct, frozen=True):
    """Effect: others have entries of a later life of this node's name; this one cannot be heard any more.

    Membership reports the same as a `NameConflict` that yields; the remedy is the same.
    """

    generation: int


GossipEvent = (
    Tick | Received | MemberAlive | MemberSuspect | MemberDead | MemberLeft | MemberForgotten | Publish | Withdraw
)
GossipEffect = Send | LaterLife
