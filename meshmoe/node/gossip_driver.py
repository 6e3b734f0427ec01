"""Runs the gossip machine on sockets and time, and publishes what this node has to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip import DEFAULT, GOSSIP_MESSAGES, Gossip, GossipEvent, HoldingsNews, Publish, Value
from meshmoe.gossip.view import View
from meshmoe.membership import Received, Send, Tick
from meshmoe.node.messenger import Messenger
from meshmoe.node.ticker import Ticker
from meshmoe.transport.base import Parcel
from meshmoe.wire.codec import Decoded


class GossipDriver:
    """Owns the machine; hand it events with `feed`."""

    def __init__(self, messenger: Messenger, node: NodeId, generation: int, rng: Random) -> None:
        self.machine = Gossip(DEFAULT, node, generation, rng, trio.current_time())
        self._messenger = messenger
        self._ticker = Ticker()
        self._seen_version = 0
        self._holdings_news = HoldingsNews()
        self.on_view_change: Callable[[], None] = lambda: None
        for message_type in GOSSIP_MESSAGES:
            messenger.on(message_type, self._received)

    @property
    def view(self) -> View:
        """What is known of all nodes."""
        return self.machine.view

    def feed(self, event: GossipEvent) -> None:
        """Hand an event to the machine, carry out what it asks for, and tell if the view has changed."""
        for effect in self.machine.handle(event, trio.current_time()):
            if isinstance(effect, Send):
                self._messenger.try_post(effect.peer, Lane.CONTROL, effect.message)
        self._ticker.poke()
        if self.view.version != self._seen_version:
            self._seen_version = self.view.version
            self.on_view_change()

    def publish(self, *values: Value) -> None:
        """Tell the mesh something about this node."""
        self.feed(Publish(values))

    def publish_holdings(self, resident: Iterable[ExpertId]) -> None:
        """Tell the mesh which experts are resident here; only layers that changed are sent."""
        changed = self._holdings_news.of(resident)
        if changed:
            self.publish(*changed)

    def publish_holding(self, expert: ExpertId, resident: bool) -> None:
        """The same when one expert has come or gone: all of a large model's come one by one at the start."""
        changed = self._holdings_news.of_one(expert, resident)
        if changed:
            self.publish(*changed)

    async def run(self) -> None:
        """Tick until cancelled."""
        await self._ticker.run(self.machine.next_deadline, lambda: self.feed(Tick()))

    def _received(self, parcel: Parcel, decoded: Decoded) -> None:
        self.feed(Received(parcel.sender, parcel.generation, decoded.message))
