"""The sending half of a lane towards one peer: a DEALER, our bounded queue before it, and a writer when needed.

A parcel goes straight to libzmq if nothing waits and libzmq takes it; that is the usual case and costs no task switch.
Else it joins the queue, and a writer task drains the queue as libzmq takes parcels. Order holds because nobody sends
past a queue that is not empty; the writer takes a parcel off the queue only after libzmq has it.

libzmq reconnects by itself, and says nothing unless asked. We ask (a monitor socket), because what waits for a peer
that was there and is gone is worth nothing: it would be delivered, late, to whatever life of it comes back. So when an
established connection breaks, the queue is dropped and counted, waiting senders are told, and until the peer is back
posts are refused as unreachable at once rather than queued: the caller can turn to another node while it still matters.
Before the first connection is established parcels do wait: `connect` and `post` may follow each other directly.

Another thread may send, too (`post_from_outside`, or compiled code by the connection's table, `Port`), but only while
nothing waits: then nobody else is in the socket but, for a moment, `post` or `close`, and a lock keeps those apart. The
writer works only while something waits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import trio
import zmq

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import LinkStats, QueueFullError, UnreachableError
from meshmoe.transport.envelope import seal
from meshmoe.transport.limits import LaneLimits, checked_size_bytes
from meshmoe.transport.ports import PortTable
from meshmoe.transport.queue import ParcelQueue, QueuedParcel
from meshmoe.transport.zmq_socket import ZmqSocket
from meshmoe.wire.frames import Frame

MONITORED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
"""The events that `OutboundLane` wants to hear."""


class OutboundLane:
    """Sends parcels to one peer on one lane, in order."""

    def __init__(
        self,
        raw: zmq.Socket[bytes],
        monitor: zmq.Socket[bytes],
        address: str,
        peer_key: bytes | None = None,
        *,
        peer: NodeId,
        lane: Lane,
        limits: LaneLimits,
        port: PortTable,
        stats: LinkStats,
        nursery: trio.Nursery,
        on_lost: Callable[[], None],
    ) -> None:
        """Start connecting.

        Args:
            raw: A DEALER with all its options set; owned from here on.
            monitor: Tells `MONITORED` events of ``raw``; owned from here on.
            address: Where to connect, as ZeroMQ writes it.
            peer_key: The key that must answer there; None in the clear.
            peer: For error messages.
            lane: For error messages.
            limits: Of the queue and of frames.
            port: What compiled code sees of this connection; no other connection's meanwhile.
            stats: Counted up here.
            nursery: Where the writer runs.
            on_lost: Called when an established connection breaks.
        """
        self.address = address
        self.peer_key = peer_key
        self._where = f"{peer} ({lane.name.lower()} lane)"
        self._stats = stats
        self._nursery = nursery
        self._on_lost = on_lost
        self._queue = ParcelQueue(limits.queue)
        self._frame_bytes_max = limits.frame_bytes_max
        self._writing = False
        self._writer_scope = trio.CancelScope()
        self._lost = False
        self.connected = False
        self._socket = ZmqSocket(raw)
        self._monitor = ZmqSocket(monitor)
        self._port = port
        self._lock = port.lock
        self._address = raw.underlying
        raw.connect(address)
        nursery.start_soon(self._watch)
        with self._lock:
            self._mark()

    @property
    def reachable(self) -> bool:
        """See `meshmoe.transport.base.Transport.reachable`."""
        return not self._lost and not self._socket.closed

    def post(self, frames: Sequence[Frame]) -> None:
        """See `meshmoe.transport.base.Transport.post`."""
        size_bytes = checked_size_bytes(frames, self._frame_bytes_max)
        if self._socket.closed:
            raise UnreachableError(f"{self._where} is disconnected")
        parcel = QueuedParcel([seal(frames)], size_bytes)
        with self._lock:
            if not len(self._queue) and self._socket.send_nowait(parcel.frames):
                self._count(parcel)
            elif self._lost:
                raise UnreachableError(f"{self._where} has lost its connection, which is being tried again")
            elif self._queue.offer(parcel):
                self._mark()
                self._start_writing()
            else:
                raise QueueFullError(f"{self._where} {self._queue.refusal()}")

    def post_from_outside(self, frames: Sequence[Frame], stats: LinkStats) -> None:
        """`post` on another thread, for a parcel that can go at once.

        Args:
            frames: The parcel.
            stats: Counted up; that thread's own.

        Raises:
            UnreachableError: As for `post`.
            QueueFullError: Something waits already, or libzmq takes no more.
        """
        size_bytes = checked_size_bytes(frames, self._frame_bytes_max)
        sealed = [seal(frames)]
        with self._lock:
            if self._socket.closed:
                raise UnreachableError(f"{self._where} is disconnected")
            taken = not len(self._queue) and self._socket.send_unwatched(sealed)
        if taken:
            stats.sent_parcels += 1
            stats.sent_bytes += size_bytes
        elif self._lost:
            raise UnreachableError(f"{self._where} has lost its connection, which is being tried again")
        else:
            raise QueueFullError(f"{self._where} takes nothing at once")

    async def send(self, frames: Sequence[Frame]) -> None:
        """See `meshmoe.transport.base.Transport.send`."""
        await self._queue.wait_for_room(checked_size_bytes(frames, self._frame_bytes_max))
        self.post(frames)

    def close(self, *, linger_ms: int = 0) -> None:
        """Close the connection and drop what waits; waiting senders get `UnreachableError`. Idempotent."""
        with self._lock:
            if not self._socket.closed:
                self._port.mark(is_open=False, socket=0)
            self._stats.dropped_parcels += self._queue.close()
            self._socket.stop_monitoring()
            self._monitor.close()
            self._socket.close(linger_ms=linger_ms)

    @property
    def port(self) -> int:
        """See `meshmoe.transport.base.DirectLane.port`."""
        return 0 if self._socket.closed else self._port.address

    def _mark(self) -> None:
        """Tell compiled code whether anything waits; under the lock."""
        # Once closed, the table may be another connection's.
        if not self._socket.closed:
            self._port.mark(is_open=not len(self._queue), socket=self._address)

    def _count(self, parcel: QueuedParcel) -> None:
        self._stats.sent_parcels += 1
        self._stats.sent_bytes += parcel.size_bytes

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._nursery.start_soon(self._write)

    async def _write(self) -> None:
        try:
            with trio.CancelScope() as self._writer_scope:
                while len(self._queue):
                    parcel = self._queue.head()
                    await self._socket.send(parcel.frames)
                    self._count(parcel)
                    # It may have been dropped just as libzmq came to take it.
                    with self._lock:
                        if len(self._queue) and self._queue.head() is parcel:
                            self._queue.pop()
                            self._mark()
        except trio.ClosedResourceError:
            pass  # Closed while waiting; `close` has dropped and counted the queue.
        finally:
            self._writing = False
            # Cancelled by `_connection_lost`, and then something was queued before this task came round.
            if len(self._queue) and not self._socket.closed:
                self._start_writing()

    async def _watch(self) -> None:
        try:
            while True:
                event = _monitor_event(await self._monitor.recv())
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self.connected = True
                    self._lost = False
                elif self.connected:
                    self.connected = False
                    self._connection_lost()
        except trio.ClosedResourceError:
            self.connected = False  # The lane was closed.

    def _connection_lost(self) -> None:
        self._lost = True
        self._stats.lost_connections += 1
        self._writer_scope.cancel()
        with self._lock:
            self._stats.dropped_parcels += self._queue.clear()
            self._mark()
        self._on_lost()


def _monitor_event(frames: list[zmq.Frame]) -> int:
    """The event's number; libzmq sends it as a 16-bit integer, and a 32-bit value after it."""
    event: int = struct.unpack_from("=H", frames[0].buffer)[0]
    return event
