"""Runs the membership machine on sockets and time, and tells the rest of the node who comes and goes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from random import Random

import trio

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.errors import PeerError
from meshmoe.core.ids import NodeId
from meshmoe.membership import (
    MEMBERSHIP_MESSAGES,
    Connect,
    Disconnect,
    Leave,
    LeaveFinished,
    LocalHealth,
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLeft,
    Membership,
    MembershipConfig,
    MembershipEffect,
    MembershipEvent,
    MemberSuspect,
    NameConflict,
    Received,
    Send,
    Tick,
)
from meshmoe.node.messenger import Messenger
from meshmoe.node.ticker import Ticker
from meshmoe.transport.base import Parcel
from meshmoe.wire.codec import Decoded

logger = logging.getLogger(__name__)

Change = MemberAlive | MemberSuspect | MemberDead | MemberLeft | MemberForgotten

LAG_PROBE_S = 0.1
"""How often the event loop's lateness is measured."""

LAG_PROBES_KEPT = 300
"""The last half minute."""


class MembershipDriver:
    """Owns the machine; hand it events with `feed`."""

    def __init__(
        self,
        messenger: Messenger,
        config: MembershipConfig,
        node: NodeId,
        generation: int,
        endpoints: Endpoints,
        rng: Random,
    ) -> None:
        self._messenger = messenger
        self.node = node
        self.machine = Membership(config, node, generation, endpoints, rng, trio.current_time())
        self._ticker = Ticker()
        self._left = trio.Event()
        self.on_change: list[Callable[[Change], None]] = []
        self.on_conflict: Callable[[NameConflict], None] = lambda _: None
        self.loop_late_max_s = 0.0
        self._late_s: deque[float] = deque(maxlen=LAG_PROBES_KEPT)
        for message_type in MEMBERSHIP_MESSAGES:
            messenger.on(message_type, self._received)

    def feed(self, event: MembershipEvent) -> None:
        """Hand an event to the machine and carry out what it asks for."""
        self._carry_out(self.machine.handle(event, trio.current_time()))
        self._ticker.poke()

    def present(self) -> list[NodeId]:
        """Other members that are alive or suspect."""
        return [node for node, member in self.machine.members.items() if member.state.present]

    def loop_late_p99_s(self) -> float:
        """99th percentile of the event loop's lateness in the last half minute."""
        late_s = sorted(self._late_s)
        return late_s[int(0.99 * (len(late_s) - 1))] if late_s else 0.0

    async def run(self) -> None:
        """Tick until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._measure_lag)
            await self._ticker.run(
                self.machine.next_deadline, lambda: self._carry_out(self.machine.handle(Tick(), trio.current_time()))
            )

    async def leave(self, timeout_s: float = 3.0) -> None:
        """Tell everybody that this node goes, and wait until that is done."""
        self.feed(Leave())
        with trio.move_on_after(timeout_s):
            await self._left.wait()

    def _received(self, parcel: Parcel, decoded: Decoded) -> None:
        self.feed(Received(parcel.sender, parcel.generation, decoded.message))

    async def _measure_lag(self) -> None:
        while True:
            due = trio.current_time() + LAG_PROBE_S
            await trio.sleep_until(due)
            late_s = trio.current_time() - due
            self._late_s.append(late_s)
            self.loop_late_max_s = max(late_s, self.loop_late_max_s * 0.99)
            if late_s > 0.05:
                self.feed(LocalHealth(late_s))

    def _connect(self, peer: NodeId, endpoints: Endpoints) -> None:
        """Open connections; a member may have told an address that is none, and then is silent to this node."""
        try:
            self._messenger.transport.connect(peer, endpoints)
        except PeerError as error:
            self._messenger.faults["unreachable"] += 1
            logger.debug("cannot connect to %s: %s", peer, error)

    def _carry_out(self, effects: Iterable[MembershipEffect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self._messenger.try_post(peer, Lane.CONTROL, message)
                case Connect(peer, endpoints):
                    self._connect(peer, endpoints)
                case Disconnect(peer):
                    self._messenger.transport.disconnect(peer)
                case MemberAlive() | MemberSuspect() | MemberDead() | MemberLeft() | MemberForgotten():
                    _tell(effect)
                    for listener in self.on_change:
                        listener(effect)
                case NameConflict():
                    self.on_conflict(effect)
                case LeaveFinished():
                    self._left.set()


def _tell(change: Change) -> None:
    match change:
        case MemberAlive(member):
            logger.info("%s is here (%s)", member.node, member.endpoints.address())
        case MemberSuspect(member):
            logger.info("%s is silent", member.node)
        case MemberDead(member):
            logger.warning("%s is dead", member.node)
        case MemberLeft(member):
            logger.info("%s has left", member.node)
        case _:
            pass
