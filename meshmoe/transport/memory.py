"""Transports inside one process, for tests: the semantics of the real one without sockets, threads or real time.

A `MemoryHub` stands for the network. Nodes attach to it under addresses; a link is one sender's queue towards one
address, and holds all that waits, where ZeroMQ has the sender's queue, the kernel and the receiver's queue. A receiver
takes from its links in turn. Parcels are copied into bytes when they are handed over, so that whoever writes to a
buffer after sending it, or relies on the receiver seeing that, is found out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.errors import ConfigError
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import LinkStats, LossListener, Parcel, QueueFullError, UnreachableError
from meshmoe.transport.ledger import Ledger
from meshmoe.transport.limits import LANE_LIMITS, LaneLimits, checked_size_bytes
from meshmoe.transport.queue import ParcelQueue, QueuedParcel
from meshmoe.transport.turns import Turns
from meshmoe.wire.frames import Frame

_HOST = "memory"
_FIRST_PORT = 1024

_Address = tuple[str, int]


class MemoryHub:
    """The network that `MemoryTransport`s share."""

    def __init__(self, limits: Mapping[Lane, LaneLimits] = LANE_LIMITS) -> None:
        self.limits = limits
        self._inboxes: dict[_Address, _Inbox] = {}
        self._links: dict[_Address, set[_Link]] = {}
        self._next_port = _FIRST_PORT

    @asynccontextmanager
    async def attach(self, node: NodeId, generation: int, port: int = 0) -> AsyncIterator[MemoryTransport]:
        """Give a node its transport.

        Args:
            node: Told to receivers.
            generation: Told to receivers.
            port: Control listens here, data and bulk on the next two, as with the real transport; 0 picks free ones.

        Raises:
            ConfigError: A port is taken.
        """
        transport = MemoryTransport(self, node, generation, port or self._free_port())
        try:
            yield transport
        finally:
            transport.close()

    def _free_port(self) -> int:
        port = self._next_port
        while any((_HOST, port + lane) in self._inboxes for lane in Lane):
            port += len(Lane)
        self._next_port = port + len(Lane)
        return port

    def _listen(self, address: _Address, inbox: _Inbox) -> None:
        if address in self._inboxes:
            raise ConfigError(f"cannot listen on port {address[1]}: another node of this hub has it")
        self._inboxes[address] = inbox
        for link in self._links.get(address, ()):
            link.lost = False
            inbox.notice(link)

    def _stop_listening(self, address: _Address) -> None:
        del self._inboxes[address]
        for link in self._links.get(address, ()):
            link.broken()

    def _open(self, link: _Link) -> None:
        self._links.setdefault(link.address, set()).add(link)

    def _forget(self, link: _Link) -> None:
        links = self._links[link.address]
        links.discard(link)
        if not links:
            del self._links[link.address]

    def _notice(self, link: _Link) -> None:
        inbox = self._inboxes.get(link.address)
        if inbox is not None:
            inbox.notice(link)


class _Link:
    """What one sender has for one address."""

    def __init__(
        self,
        address: _Address,
        lane: Lane,
        limits: LaneLimits,
        sender: NodeId,
        generation: int,
        stats: LinkStats,
        on_broken: Callable[[], None],
    ) -> None:
        self.address = address
        self.lane = lane
        self.limits = limits
        self.sender = sender
        self.generation = generation
        self.stats = stats
        self.queue = ParcelQueue(limits.queue)
        self.on_broken = on_broken
        self.noticed = False
        self.lost = False

    def broken(self) -> None:
        """The receiver is gone, and with it what it had not yet received."""
        self.noticed = False
        self.lost = True
        self.stats.lost_connections += 1
        self.stats.dropped_parcels += self.queue.clear()
        self.on_broken()


class _Inbox:
    """The links that have something for one lane of one node, each once, in turn."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.closed = False
        self._links: deque[_Link] = deque()
        self._turns = Turns()
        self._arrival: trio.Event | None = None

    def notice(self, link: _Link) -> None:
        if not link.noticed and len(link.queue):
            link.noticed = True
            self._links.append(link)
            if self._arrival is not None:
                self._arrival.set()

    async def take(self) -> tuple[_Link, QueuedParcel]:
        await self._turns.take()
        if self._arrival is not None:
            raise trio.BusyResourceError("another task is receiving on this lane")
        while True:
            while self._links:
                link = self._links.popleft()
                link.noticed = False
                # It may have been disconnected, and its queue cleared, since it was noticed.
                if len(link.queue):
                    parcel = link.queue.pop()
                    self.notice(link)
                    return link, parcel
            if self.closed:
                raise trio.ClosedResourceError("this transport is closed")
            self._turns.waited()
            self._arrival = trio.Event()
            try:
                await self._arrival.wait()
            finally:
                self._arrival = None

    def close(self) -> None:
        self.closed = True
        self._links.clear()
        if self._arrival is not None:
            self._arrival.set()


class MemoryTransport:
    """Implements `meshmoe.transport.base.Transport`; made by `MemoryHub.attach`."""

    def __init__(self, hub: MemoryHub, node: NodeId, generation: int, port: int) -> None:
        self._hub = hub
        self._node = node
        self._generation = generation
        self._closed = False
        self._ledger = Ledger()
        self._listeners: list[LossListener] = []
        self._outbound: dict[NodeId, dict[Lane, _Link]] = {}
        self._endpoints = Endpoints(_HOST, *(port + lane for lane in Lane))
        self._inboxes: dict[Lane, _Inbox] = {}
        self.bad_messages = 0
        try:
            for lane in Lane:
                inbox = _Inbox(lane)
                hub._listen((_HOST, port + lane), inbox)
                self._inboxes[lane] = inbox
        except ConfigError:
            self.close()
            raise

    @property
    def endpoints(self) -> Endpoints:
        """Where this node listens: an address that means something in its hub only."""
        return self._endpoints

    def connect(self, peer: NodeId, endpoints: Endpoints) -> None:
        """See `Transport.connect`."""
        self._check_open()
        lanes = self._outbound.setdefault(peer, {})
        for lane in Lane:
            current, address = lanes.get(lane), (endpoints.host, endpoints.port(lane))
            if current is not None and current.address != address:
                self._drop(lanes.pop(lane))
                current = None
            if current is None and endpoints.port(lane):
                limits = self._hub.limits[lane]
                link = _Link(
                    address,
                    lane,
                    limits,
                    self._node,
                    self._generation,
                    self._ledger.of(peer),
                    partial(self._lost, peer, lane),
                )
                self._hub._open(link)
                lanes[lane] = link

    def disconnect(self, peer: NodeId) -> None:
        """See `Transport.disconnect`."""
        for link in self._outbound.pop(peer, {}).values():
            self._drop(link)

    def post(self, peer: NodeId, lane: Lane, frames: Sequence[Frame]) -> None:
        """See `Transport.post`."""
        self._put(peer, self._link_to(peer, lane), frames)

    async def send(self, peer: NodeId, lane: Lane, frames: Sequence[Frame]) -> None:
        """See `Transport.send`."""
        link = self._link_to(peer, lane)
        await link.queue.wait_for_room(checked_size_bytes(frames, link.limits.frame_bytes_max))
        self._put(peer, link, frames)

    def reachable(self, peer: NodeId, lane: Lane) -> bool:
        """See `Transport.reachable`."""
        link = self._outbound.get(peer, {}).get(lane)
        return link is not None and not link.lost

    def connected(self, peer: NodeId, lane: Lane) -> bool:
        """See `Transport.connected`."""
        return self.reachable(peer, lane)

    def on_lost(self, listener: LossListener) -> None:
        """See `Transport.on_lost`."""
        self._listeners.append(listener)

    def _lost(self, peer: NodeId, lane: Lane) -> None:
        for listener in self._listeners:
            listener(peer, lane)

    def open_direct(self, lane: Lane) -> None:
        """See `Transport.open_direct`: there is none, all happens on trio."""

    async def receive(self, lane: Lane) -> Parcel:
        """See `Transport.receive`."""
        while True:
            link, (frames, size_bytes) = await self._inboxes[lane].take()
            if link.lane is not lane:
                self.bad_messages += 1
                continue
            stats = self._ledger.of(link.sender)
            stats.received_parcels += 1
            stats.received_bytes += size_bytes
            return Parcel(link.sender, link.generation, [memoryview(frame) for frame in frames])

    def stats(self, peer: NodeId) -> LinkStats:
        """See `Transport.stats`."""
        return self._ledger.snapshot(peer)

    def close(self) -> None:
        """Leave the hub; called by `MemoryHub.attach`. What was sent before still arrives."""
        if self._closed:
            return
        self._closed = True
        for lane, inbox in self._inboxes.items():
            inbox.close()
            self._hub._stop_listening((_HOST, self._endpoints.port(lane)))
        for lanes in self._outbound.values():
            for link in lanes.values():
                link.queue.seal()
                self._hub._forget(link)
        self._outbound.clear()

    def _put(self, peer: NodeId, link: _Link, frames: Sequence[Frame]) -> None:
        size_bytes = checked_size_bytes(frames, link.limits.frame_bytes_max)
        where = f"{peer} ({link.lane.name.lower()} lane)"
        if link.queue.closed:
            raise UnreachableError(f"{where} is disconnected")
        if link.lost:
            raise UnreachableError(f"{where} has lost its connection")
        if not link.queue.offer(QueuedParcel([bytes(frame) for frame in frames], size_bytes)):
            raise QueueFullError(f"{where} {link.queue.refusal()}")
        link.stats.sent_parcels += 1
        link.stats.sent_bytes += size_bytes
        self._hub._notice(link)

    def _drop(self, link: _Link) -> None:
        link.stats.dropped_parcels += link.queue.close()
        self._hub._forget(link)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this transport is closed")

    def _link_to(self, peer: NodeId, lane: Lane) -> _Link:
        self._check_open()
        lanes = self._outbound.get(peer)
        if lanes is None:
            raise UnreachableError(f"{peer} is not connected")
        link = lanes.get(lane)
        if link is None:
            raise UnreachableError(f"{peer} has told no address of its {lane.name.lower()} lane")
        return link
