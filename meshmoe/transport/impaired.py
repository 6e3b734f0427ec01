"""A transport over an emulated network: each outgoing link gets delay, rate, jitter, loss and partitions.

No root, no other machine: a decorator around any transport. A parcel waits here until the link model says that it has
arrived, and is then posted to the inner transport, whose own 0.1 ms or so comes on top. Each node impairs what it
sends, so a link is impaired both ways if both ends are, and a one-way partition is one end's `block`.

A *partition* looks as it does with TCP underneath: what is sent waits, and goes on its way if the partition ends within
`BREAK_AFTER_S`; after that the connection is taken for broken, what waits is dropped, and posts are refused as
unreachable until `unblock`.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.ids import NodeId
from meshmoe.core.links import LinkShape
from meshmoe.transport.base import (
    DirectLane,
    LinkStats,
    LossListener,
    Parcel,
    QueueFullError,
    Transport,
    UnreachableError,
)
from meshmoe.transport.impaired_direct import ImpairedDirectLane
from meshmoe.transport.limits import LANE_LIMITS, checked_size_bytes
from meshmoe.transport.link_model import Arrival, LinkModel
from meshmoe.transport.link_table import LinkTable, ahead_s
from meshmoe.transport.native_tables import Port, write_word
from meshmoe.transport.precise_timer import PreciseTimer, open_precise_timer
from meshmoe.transport.queue import ParcelQueue, QueuedParcel
from meshmoe.transport.service_nursery import open_service_nursery
from meshmoe.wire.frames import Frame

BREAK_AFTER_S = 2.0
"""Heartbeat interval + timeout of the real transport (`meshmoe.transport.zmq_knobs`)."""


@asynccontextmanager
async def open_impaired_transport(
    inner: Transport, links: Mapping[NodeId, LinkShape], seed: int
) -> AsyncIterator[ImpairedTransport]:
    """Put emulated links before ``inner``, which must outlive the context.

    Args:
        inner: Carries the parcels in the end.
        links: Shape of the link to each peer; peers not named are not impaired.
        seed: Of jitter and loss; each link draws its own sequence from it.
    """
    timer = open_precise_timer()
    try:
        async with open_service_nursery() as nursery:
            transport = ImpairedTransport(inner, links, seed, nursery, timer)
            nursery.start_soon(transport._run)
            try:
                yield transport
            finally:
                transport.close()
    finally:
        timer.close()


class _Link:
    """What this node has under way to one peer."""

    def __init__(self, peer: NodeId, shape: LinkShape, chance: random.Random, table: LinkTable) -> None:
        self.peer = peer
        self.queues = {lane: ParcelQueue(LANE_LIMITS[lane].queue) for lane in Lane}
        self.table = table
        self.model = LinkModel(shape, self.queues, chance, trio.current_time(), table)
        # Arrived, but the inner transport's queue was full: a task per lane waits for room.
        self.stalled: dict[Lane, deque[QueuedParcel]] = {lane: deque() for lane in Lane}
        self.breaks_s = math.inf
        self.broken = False
        self.due_s = math.inf
        self.dropped_parcels = 0

    def forget_lane(self, lane: Lane) -> None:
        """Drop everything on one lane, and wake those who wait for room there."""
        self.dropped_parcels += self.queues[lane].clear() + self.model.forget_lane(lane) + len(self.stalled[lane])
        self.stalled[lane].clear()
        self.table.life += lane is Lane.DATA  # what another thread has under way since before is dropped

    def next_event_s(self) -> float:
        return min(self.model.next_event_s(), self.breaks_s)


class ImpairedTransport:
    """Implements `meshmoe.transport.base.Transport`; made by `open_impaired_transport`."""

    def __init__(
        self,
        inner: Transport,
        links: Mapping[NodeId, LinkShape],
        seed: int,
        nursery: trio.Nursery,
        timer: PreciseTimer,
    ) -> None:
        self._inner = inner
        self._seed = seed
        self._nursery = nursery
        self._timer = timer
        self._timer_s = math.inf
        self._closed = False
        self._lock = threading.Lock()
        """Around the links' models, which a direct lane's thread looks at, too."""
        self._ahead_s = ahead_s(trio.current_time)
        self._ports: dict[NodeId, set[int]] = {}
        """Tables of connections that compiled code may know (`tie`)."""
        self._links = {peer: self._new_link(peer, shape) for peer, shape in links.items()}
        # Which lanes of which peers were connected, and where to.
        self._connected: dict[NodeId, Endpoints] = {}

    @property
    def endpoints(self) -> Endpoints:
        """See `Transport.endpoints`."""
        return self._inner.endpoints

    def connect(self, peer: NodeId, endpoints: Endpoints) -> None:
        """See `Transport.connect`."""
        self._inner.connect(peer, endpoints)
        before = self._connected.get(peer)
        self._connected[peer] = endpoints
        link = self._links.get(peer)
        if link is not None and before is not None:
            for lane in Lane:
                if before.address(lane) != endpoints.address(lane):
                    self._forget_lane(link, lane)

    def disconnect(self, peer: NodeId) -> None:
        """See `Transport.disconnect`."""
        self._connected.pop(peer, None)
        link = self._links.get(peer)
        if link is not None:
            for lane in Lane:
                self._forget_lane(link, lane)
        self._inner.disconnect(peer)

    def post(self, peer: NodeId, lane: Lane, frames: Sequence[Frame]) -> None:
        """See `Transport.post`."""
        link = self._links.get(peer)
        if link is None:
            self._inner.post(peer, lane, frames)
            return
        parcel = QueuedParcel(frames, checked_size_bytes(frames, LANE_LIMITS[lane].frame_bytes_max))
        self._check_reachable(link, lane)
        self._advance(link)
        with self._lock:
            taken = link.queues[lane].offer(parcel)
        if not taken:
            raise QueueFullError(f"{peer} ({lane.name.lower()} lane) {link.queues[lane].refusal()}")
        self._plan(link)

    async def send(self, peer: NodeId, lane: Lane, frames: Sequence[Frame]) -> None:
        """See `Transport.send`."""
        link = self._links.get(peer)
        if link is None:
            await self._inner.send(peer, lane, frames)
            return
        size_bytes = checked_size_bytes(frames, LANE_LIMITS[lane].frame_bytes_max)
        self._check_reachable(link, lane)
        await link.queues[lane].wait_for_room(size_bytes)
        self.post(peer, lane, frames)

    def reachable(self, peer: NodeId, lane: Lane) -> bool:
        """See `Transport.reachable`."""
        link = self._links.get(peer)
        return self._inner.reachable(peer, lane) and not (link is not None and link.broken)

    def connected(self, peer: NodeId, lane: Lane) -> bool:
        """See `Transport.connected`; of the real connection under the emulated link."""
        return self._inner.connected(peer, lane)

    def on_lost(self, listener: LossListener) -> None:
        """See `Transport.on_lost`; connections that the emulated link breaks are not told of."""
        self._inner.on_lost(listener)

    async def receive(self, lane: Lane) -> Parcel:
        """See `Transport.receive`."""
        return await self._inner.receive(lane)

    def open_direct(self, lane: Lane) -> DirectLane | None:
        """See `Transport.open_direct`."""
        inner = self._inner.open_direct(lane)
        return None if inner is None else ImpairedDirectLane(self, inner, lane)

    def emulates(self, peer: NodeId) -> bool:
        """Whether there is an emulated link to ``peer``; on any thread, as the four below."""
        return peer in self._links

    def pass_alone(self, peer: NodeId, lane: Lane, frames: Sequence[Frame], now_s: float) -> tuple[float, int] | None:
        """Let a parcel of another thread onto an idle link.

        Returns:
            When it arrives, and the link's life, which `is_life` knows; None if it has to queue (`post_sent_at`).

        Raises:
            UnreachableError: As for `post`.
        """
        link = self._links[peer]
        self._check_reachable(link, lane)
        size_bytes = checked_size_bytes(frames, LANE_LIMITS[lane].frame_bytes_max)
        with self._lock:
            arrival_s = link.model.pass_alone(lane, size_bytes, now_s)
            return None if arrival_s is None else (arrival_s, link.table.life)

    def tie(self, peer: NodeId, port: int) -> None:
        """Let the table of a connection to ``peer`` tell, from now on, of the emulated link before it."""
        with self._lock:
            self._ports.setdefault(peer, set()).add(port)
            self._write_link(peer)

    def is_life(self, peer: NodeId, life: int) -> bool:
        """Whether what was let onto the link in that life still counts; if not, it is dropped and counted here."""
        link = self._links[peer]
        with self._lock:
            link.dropped_parcels += link.table.life != life
            return link.table.life == life

    def deliver(self, peer: NodeId, lane: Lane, frames: Sequence[Frame]) -> None:
        """On the trio thread: a parcel of another thread has arrived, but did not go at once."""
        self._deliver(self._links[peer], Arrival(lane, QueuedParcel(frames, sum(map(len, frames)))))

    def post_sent_at(self, peer: NodeId, lane: Lane, frames: Sequence[Frame], sent_s: float) -> None:
        """Take a parcel that another thread has sent at ``sent_s``; one that cannot go is dropped and counted."""
        link = self._links[peer]
        parcel = QueuedParcel(frames, checked_size_bytes(frames, LANE_LIMITS[lane].frame_bytes_max))
        try:
            self._check_reachable(link, lane)
        except (UnreachableError, trio.ClosedResourceError):
            link.dropped_parcels += 1
            return
        self._advance(link, sent_s)
        with self._lock:
            link.dropped_parcels += not link.queues[lane].offer(parcel)
        self._plan(link)

    def stats(self, peer: NodeId) -> LinkStats:
        """See `Transport.stats`; what is still on the emulated link does not count as sent."""
        stats = self._inner.stats(peer)
        link = self._links.get(peer)
        dropped = link.dropped_parcels + link.table.dropped if link is not None else 0
        return msgspec.structs.replace(stats, dropped_parcels=stats.dropped_parcels + dropped)

    def reshape(self, peer: NodeId, shape: LinkShape) -> None:
        """Change the link to ``peer``, or begin to impair it; what is in flight keeps its old delay."""
        link = self._links.get(peer)
        if link is None:
            with self._lock:
                self._links[peer] = self._new_link(peer, shape)
                self._write_link(peer)
            return
        self._advance(link)
        with self._lock:
            link.model.shape = shape
        self._plan(link)

    def block(self, peer: NodeId) -> None:
        """Let nothing through to ``peer`` any more; a two-way partition takes both ends.

        Raises:
            KeyError: The link to ``peer`` is not an impaired one.
        """
        link = self._links[peer]
        self._advance(link)
        if not link.model.blocked:
            with self._lock:
                link.model.blocked = True
            link.breaks_s = trio.current_time() + BREAK_AFTER_S
        self._plan(link)

    def unblock(self, peer: NodeId) -> None:
        """End the partition; the emulated connection is back at once, where a real one may take two seconds more."""
        link = self._links[peer]
        self._advance(link)
        with self._lock:
            link.model.blocked = False
        link.broken = False
        link.breaks_s = math.inf
        self._plan(link)

    def close(self) -> None:
        """Drop what is under way; called by `open_impaired_transport`."""
        self._closed = True
        with self._lock:
            for link in self._links.values():
                link.model.blocked = True
                for queue in link.queues.values():
                    queue.close()

    def _new_link(self, peer: NodeId, shape: LinkShape) -> _Link:
        return _Link(peer, shape, random.Random(f"{self._seed}/{peer}"), LinkTable(self._ahead_s))

    def _write_link(self, peer: NodeId) -> None:
        link = self._links.get(peer)
        for port in self._ports.get(peer, ()):
            write_word(port, Port.LINK, link.table.address if link is not None else 0)

    def _forget_lane(self, link: _Link, lane: Lane) -> None:
        with self._lock:
            link.forget_lane(lane)

    def _check_reachable(self, link: _Link, lane: Lane) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this transport is closed")
        endpoints = self._connected.get(link.peer)
        if endpoints is None:
            raise UnreachableError(f"{link.peer} is not connected")
        if not endpoints.port(lane):
            raise UnreachableError(f"{link.peer} has told no address of its {lane.name.lower()} lane")
        if link.broken:
            raise UnreachableError(f"{link.peer} is cut off (emulated partition)")
        if not self._inner.reachable(link.peer, lane):
            raise UnreachableError(f"{link.peer} ({lane.name.lower()} lane) has lost its connection")

    def _plan(self, link: _Link) -> None:
        """Work out when this link needs attention next, and see to it that the timer rings by then."""
        link.due_s = link.next_event_s()
        if link.due_s < self._timer_s:
            self._timer_s = link.due_s
            self._timer.set(link.due_s)

    async def _run(self) -> None:
        while True:
            now_s = trio.current_time()
            for link in self._links.values():
                if link.due_s <= now_s:
                    self._advance(link)
                    link.due_s = link.next_event_s()
            self._timer_s = min((link.due_s for link in self._links.values()), default=math.inf)
            self._timer.set(self._timer_s)
            await self._timer.wait()

    def _advance(self, link: _Link, now_s: float | None = None) -> None:
        """Let time pass on a link, until now or until an earlier moment."""
        now_s = trio.current_time() if now_s is None else now_s
        with self._lock:
            arrivals = link.model.advance(now_s)
        for arrival in arrivals:
            self._deliver(link, arrival)
        if link.breaks_s <= now_s:
            link.breaks_s = math.inf
            link.broken = True
            for lane in Lane:
                self._forget_lane(link, lane)

    def _deliver(self, link: _Link, arrival: Arrival) -> None:
        lane, parcel = arrival
        stalled = link.stalled[lane]
        if stalled:
            stalled.append(parcel)
            return
        try:
            self._inner.post(link.peer, lane, parcel.frames)
        except UnreachableError:
            link.dropped_parcels += 1
            self._forget_lane(link, lane)
        except QueueFullError:
            stalled.append(parcel)
            with self._lock:
                link.model.hold(lane, True)
            self._nursery.start_soon(self._deliver_stalled, link, lane)

    async def _deliver_stalled(self, link: _Link, lane: Lane) -> None:
        """The peer reads slowly: deliver as it does, and let nothing more onto the lane until it has caught up."""
        stalled = link.stalled[lane]
        while stalled:
            parcel = stalled[0]
            try:
                await self._inner.send(link.peer, lane, parcel.frames)
            except UnreachableError:
                self._forget_lane(link, lane)
            # The lane may have been forgotten, and stalled anew, while this waited.
            if stalled and stalled[0] is parcel:
                stalled.popleft()
        self._advance(link)
        with self._lock:
            link.model.hold(lane, len(stalled) > 0)  # what has arrived just now may have stalled anew
        self._plan(link)
