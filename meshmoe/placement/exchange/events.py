"""What the runtime tells the exchange machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from meshmoe.core.ids import NodeId
from meshmoe.core.messages import Message
from meshmoe.placement.table import Mask
from meshmoe.placement.trace import Floats, Trace


class Wake(msgspec.Struct, frozen=True):
    """The time of `ExchangeMachine.next_deadline` has come."""


class Heard(msgspec.Struct, frozen=True):
    """One of `EXCHANGE_MESSAGES` came in, from a sender that the transport vouches for."""

    sender: NodeId
    message: Message


@dataclass(frozen=True)
class OwnTrace:
    """The node's demand has changed so much that it should think again.

    Attributes:
        trace: The demand.
        away_s: What a row that is sent away costs beside its own time, seconds.
    """

    trace: Trace
    away_s: float = 0.0


@dataclass(frozen=True)
class PeerPlan:
    """What gossip tells of another node.

    Attributes:
        version: Of its plan.
        held, owned: ``[layers, experts]``, in its plan.
        demand: ``[layers, experts]``, calls a second.
    """

    version: int
    held: Mask
    owned: Mask
    demand: Floats


@dataclass(frozen=True)
class Links:
    """Times between nodes, named ``nodes``, which include this one; as in `meshmoe.placement.world.World`."""

    nodes: tuple[NodeId, ...]
    call_s: Floats
    byte_s: Floats
    row_s: Floats
    near: Mask


@dataclass(frozen=True)
class PeersChanged:
    """Gossip or membership has news. A peer that is not named is gone, and with it an exchange with it.

    Attributes:
        peers: All that are present.
        links: Between all of them and this node.
    """

    peers: Mapping[NodeId, PeerPlan]
    links: Links


@dataclass(frozen=True)
class Repair:
    """Owners are to be put right: experts that nobody owns, and those that several do.

    Heeded only while no exchange is under way; the runtime tells again what is still wrong.

    Attributes:
        adopt, disown: ``[layers, experts]``, what this node is to own from now on, and not any more.
    """

    adopt: Mask
    disown: Mask


ExchangeEvent = Wake | Heard | OwnTrace | PeersChanged | Repair
