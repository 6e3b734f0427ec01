"""What the runtime tells the planner, and what the planner asks of the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip import NodeView, Value
from meshmoe.placement.exchange import Heard, Links, OwnTrace, PlanChanged, SendTo, Wake


@dataclass(frozen=True)
class Seen:
    """What gossip shows of the other nodes that serve.

    Attributes:
        nodes: Without this one; those that are leaving are left out.
        links: Between these nodes and this one, all of them.
    """

    nodes: Mapping[NodeId, NodeView]
    links: Links


@dataclass(frozen=True)
class Learning:
    """Whether this node is about to think otherwise, since its use begins or changes: weights should wait for that."""

    on: bool


@dataclass(frozen=True)
class Tell:
    """Gossip these values."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Settled:
    """The plans have come to rest: weights should move now.

    Attributes:
        wants: What this node is to hold, what it owns first.
        holders: Who is to hold each expert, its owner first.
    """

    wants: tuple[ExpertId, ...]
    holders: Mapping[ExpertId, tuple[NodeId, ...]]


PlannerEvent = Seen | Learning | OwnTrace | Heard | Wake
PlannerEffect = SendTo | PlanChanged | Tell | Settled
