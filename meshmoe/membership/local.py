"""What the parts of the machine share: who this node is, its clocks' deadlines, its health, its outgoing effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, auto
from random import Random
from typing import NamedTuple

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.membership.awareness import Awareness
from meshmoe.membership.broadcast import BroadcastQueue
from meshmoe.membership.config import MembershipConfig
from meshmoe.membership.effects import MembershipEffect
from meshmoe.membership.member import MemberState
from meshmoe.membership.messages import MemberUpdate
from meshmoe.membership.timers import Timers


class TimerKind(IntEnum):
    """What a deadline is for; in brackets what its subject is, if it has one."""

    ROUND = auto()  # probe the next member
    RETRY = auto()  # send a probe again (probe id)
    END = auto()  # a probe has failed (probe id)
    RELAY_RETRY = auto()  # send a probe for somebody else again (relay id)
    NACK = auto()  # tell the asker that the target is silent (relay id)
    RELAY_END = auto()  # forget a probe made for somebody else (relay id)
    VERIFY = auto()  # probe a suspect (node)
    JUDGE = auto()  # a suspect's time may be over (node)
    FORGET = auto()  # a member has been gone for long (node)
    GOSSIP = auto()  # spread news
    SYNC = auto()  # exchange the whole table with somebody
    PROBE_DEAD = auto()  # see whether one of the dead is back
    VISIT = auto()  # see whether one of those who left is back
    FAREWELL = auto()  # say goodbye again


class Timer(NamedTuple):
    """Name of a deadline."""

    kind: TimerKind
    subject: NodeId | int = 0


@dataclass(slots=True)
class Local:
    """This node. ``silent`` once it has left or yielded its name."""

    config: MembershipConfig
    node: NodeId
    generation: int
    endpoints: Endpoints
    rng: Random
    awareness: Awareness
    timers: Timers[Timer] = field(default_factory=Timers)
    queue: BroadcastQueue = field(default_factory=BroadcastQueue)
    out: list[MembershipEffect] = field(default_factory=list)
    incarnation: int = 0
    leaving: bool = False
    silent: bool = False

    def update(self) -> MemberUpdate:
        """This node's word on itself."""
        state = MemberState.LEFT if self.leaving else MemberState.ALIVE
        return MemberUpdate(self.node, self.generation, self.incarnation, state, self.endpoints)

    def fall_silent(self) -> None:
        """Take no further part."""
        self.silent = True
        self.timers.clear()
        self.queue.clear()
