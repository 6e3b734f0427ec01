"""Membership and gossip of one simulated node, driven as `meshmoe.node.membership_driver` and ``gossip_driver`` do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Protocol

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.gossip import DEFAULT, Gossip, GossipEvent, HoldingsNews, LaterLife, Publish, Value
from meshmoe.membership import (
    LAN,
    Connect,
    Disconnect,
    LeaveFinished,
    Membership,
    MembershipEvent,
    NameConflict,
    Send,
    Tick,
)
from meshmoe.sim.process import Alarm, Process


class Wires(Protocol):
    """What the part needs of its node."""

    def connect(self, peer: NodeId, endpoints: Endpoints) -> None:
        """Open or re-point a connection."""

    def disconnect(self, peer: NodeId) -> None:
        """Close a connection."""

    def send(self, peer: NodeId, message: Message, *, must_be_connected: bool) -> None:
        """Post on the control lane."""

    def heard(self, effect: object) -> None:
        """For the log and the checker: something that is no message."""

    def farewell_said(self) -> None:
        """Membership has told everybody that this node goes."""

    def yields(self) -> None:
        """The node's name belongs to a later life."""


class MeshPart:
    """Who is here, and who knows what."""

    def __init__(
        self, process: Process, wires: Wires, node: NodeId, generation: int, endpoints: Endpoints, rng: Random
    ) -> None:
        self.membership = Membership(LAN, node, generation, endpoints, Random(rng.random()), process.now_s)
        self.gossip = Gossip(DEFAULT, node, generation, Random(rng.random()), process.now_s)
        self.on_view_change: Callable[[], None] = lambda: None
        self._process = process
        self._wires = wires
        self._seen_version = 0
        self._holdings_news = HoldingsNews()
        self._membership_alarm = Alarm(process, self.membership.next_deadline, lambda: self.feed(Tick()))
        self._gossip_alarm = Alarm(process, self.gossip.next_deadline, lambda: self.tell(Tick()))
        self._membership_alarm.set()
        self._gossip_alarm.set()

    def feed(self, event: MembershipEvent) -> None:
        """Hand an event to membership, and carry out what it asks for."""
        for effect in self.membership.handle(event, self._process.now_s):
            match effect:
                case Send(peer, message):
                    self._wires.send(peer, message, must_be_connected=True)
                case Connect(peer, endpoints):
                    self._wires.connect(peer, endpoints)
                case Disconnect(peer):
                    self._wires.disconnect(peer)
                case LeaveFinished():
                    self._wires.farewell_said()
                case NameConflict():
                    self._wires.heard(effect)
                    if effect.yields:
                        self._wires.yields()
                case _:
                    self._wires.heard(effect)
                    self.tell(effect)
        self._membership_alarm.set()

    def tell(self, event: GossipEvent) -> None:
        """Hand an event to gossip, carry out what it asks for, and say so if the view has changed."""
        for effect in self.gossip.handle(event, self._process.now_s):
            match effect:
                case Send(peer, message):
                    self._wires.send(peer, message, must_be_connected=True)
                case LaterLife():
                    self._wires.yields()
        self._gossip_alarm.set()
        if self.gossip.view.version != self._seen_version:
            self._seen_version = self.gossip.view.version
            self.on_view_change()

    def publish(self, *values: Value) -> None:
        """Tell the mesh something about this node."""
        self.tell(Publish(values))

    def publish_holdings(self, resident: Iterable[ExpertId]) -> None:
        """Tell the mesh which experts are resident here; only layers that changed are sent."""
        changed = self._holdings_news.of(resident)
        if changed:
            self.publish(*changed)
