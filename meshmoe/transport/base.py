"""The small interface that every transport fills, and that the runtime is written against.

A transport moves *parcels* (lists of byte frames) one way, from a node to a named peer, on one of three *lanes*. Each
lane is its own connection, so that a 12 MB expert on ``BULK`` never stands in front of a probe on ``CONTROL``. Every
connection carries frames in one direction only: a node sends through sockets that it opened itself and receives through
sockets that it has bound. Requests, replies and deadlines are made of parcels one level up.

Delivery is at most once and in order within a lane while a connection lives; a parcel handed over while a connection
breaks may be lost. Whoever needs an answer sets a deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.errors import PeerError
from meshmoe.core.ids import NodeId
from meshmoe.transport.native import NativeLane
from meshmoe.wire.frames import Frame


class Parcel(NamedTuple):
    """What came in.

    Attributes:
        sender: The node whose key the connection has proved; of a guest, the name that it would like to have.
        generation: Of the sender, by its own word.
        frames: The content.
        guest: The key of a sender that is not admitted, in hex digits; empty for members, and in an insecure mesh.
    """

    sender: NodeId
    generation: int
    frames: list[memoryview]
    guest: str = ""


class Arrived(NamedTuple):
    """A parcel that compiled code has received, and how it knows the next one of the same connection.

    Attributes:
        parcel: What came in.
        routing_id: Of the connection, as libzmq gave it with the message.
        user_id: The key that it has proved, as libzmq gives it; empty where there are no keys.
    """

    parcel: Parcel
    routing_id: bytes
    user_id: bytes


class LinkStats(msgspec.Struct):
    """Counters of one peer, both directions, all lanes.

    Attributes:
        sent_bytes: Handed to the network.
        received_bytes: Of parcels received.
        sent_parcels: Handed to the network; lost all the same if the connection broke then.
        received_parcels: Of this peer, from all of its connections.
        dropped_parcels: Accepted from callers and never handed to the network.
        lost_connections: How often an established connection towards the peer broke: what a caller must allow for when
            a parcel is missing.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_parcels: int = 0
    received_parcels: int = 0
    dropped_parcels: int = 0
    lost_connections: int = 0

    def add(self, other: LinkStats) -> None:
        """Count what ``other`` has counted, too."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class UnreachableError(PeerError):
    """The peer is not connected, or did not take the parcel in time."""


class QueueFullError(PeerError):
    """The bounded queue towards the peer is full: it takes parcels more slowly than they are made."""


LossListener = Callable[[NodeId, Lane], None]
"""Told peer and lane of a connection that has broken; runs on the trio thread and returns at once."""


class DirectLane(Protocol):
    """A lane in the hands of a thread that does not run trio; made by `Transport.open_direct`.

    `send`, `receive` and `wait` belong to one thread, which comes back to one of the last two soon: an emulated link
    delivers what was sent while that thread is in them. The transport closes it with everything else.

    Compiled code may do both itself, by what `native` and `port` tell, between `enter` and `leave`. It takes only what
    is plain; the methods from `parcel` on are what it leaves to this side. They belong to the same thread.
    """

    def send(self, peer: NodeId, frames: Sequence[Frame]) -> None:
        """Hand over a parcel without waiting.

        Raises:
            UnreachableError: As for `Transport.post`.
            QueueFullError: It does not go out at once; `Transport.send` can wait for room.
        """
        ...

    def receive(self) -> Parcel | None:
        """The next parcel, None when there is none."""
        ...

    def descriptor(self) -> int | None:
        """After `receive` has returned None: a descriptor that can be read once it may return something again.

        None where the thread has to come back before that.
        """
        ...

    def wait(self, timeout_s: float, awake_s: float = 0.0) -> None:
        """Wait until a parcel has come or `wake` was called, or for ``timeout_s``; may return early.

        Args:
            timeout_s: How long at most.
            awake_s: For so long of that it does not sleep, but looks again and again.
        """
        ...

    def wake(self) -> None:
        """Let `wait` return, and compiled code; on any thread."""
        ...

    def native(self) -> NativeLane | None:
        """What compiled code needs in order to receive; None where it cannot."""
        ...

    def port(self, peer: NodeId) -> int:
        """Address of the table (`meshmoe.transport.native_tables.Port`) of the connection to ``peer``; 0 for none.

        It remains valid, and the peer's, for as long as this lane is kept.
        """
        ...

    def enter(self) -> bool:
        """Before compiled code serves this lane; False if it is closed, or about to be. Not to be nested."""
        ...

    def leave(self) -> None:
        """After it has, which must be soon after `wake`: closing waits for it."""
        ...

    def drained(self, empty: bool) -> None:
        """Tell whether compiled code has found that no message is there."""
        ...

    def parcel(self, messages: int) -> Arrived | None:
        """Make a parcel of a message that compiled code has received; None, counted, if it is none.

        Args:
            messages: Address of two ``zmq_msg_t``, routing id and content; taken over.
        """
        ...

    def refuse(self, messages: int) -> None:
        """Throw away, and count, a message that has not exactly one frame of content; ``messages`` as for `parcel`."""
        ...

    def still(self, routing_id: bytes, user_id: bytes, node: NodeId) -> bool:
        """Whether what comes with these, which `parcel` has found to be those of ``node``, still counts as its."""
        ...

    def heard(self, node: NodeId, parcels: int, size_bytes: int) -> None:
        """Count what compiled code has received itself."""
        ...

    def sent(self, node: NodeId, parcels: int, size_bytes: int) -> None:
        """Count what compiled code has sent."""
        ...

    def due_s(self) -> float:
        """Send on what has arrived at the end of an emulated link; returns seconds until the next does, or infinity."""
        ...


class Transport(Protocol):
    """See the module's text. All methods belong to the trio thread."""

    @property
    def endpoints(self) -> Endpoints:
        """Where this node listens."""
        ...

    def connect(self, peer: NodeId, endpoints: Endpoints) -> None:
        """Open (or re-point) the outgoing connections to ``peer``; returns at once, connects in the background."""
        ...

    def disconnect(self, peer: NodeId) -> None:
        """Close the outgoing connections to ``peer`` and drop what is queued for it. Unknown peers are fine."""
        ...

    def post(self, peer: NodeId, lane: Lane, frames: Sequence[Frame]) -> None:
        """Hand over a parcel without waiting.

        Raises:
            UnreachableError: ``peer`` was never connected with ``connect`` or has no such lane.
            QueueFullError: the lane's bounded queue is full.
        """
        ...

    async def send(self, peer: NodeId, lane: Lane, frames: Sequence[Frame]) -> None:
        """Hand over a parcel, waiting for room in the queue; the caller sets the deadline by a cancel scope.

        Raises:
            UnreachableError: as for ``post``, or the peer is disconnected while waiting.
        """
        ...

    def reachable(self, peer: NodeId, lane: Lane) -> bool:
        """Whether ``post`` would take a parcel as far as is known: connected, or still connecting for the first time.

        False for a peer whose connection broke and is not back yet.
        """
        ...

    def connected(self, peer: NodeId, lane: Lane) -> bool:
        """Whether a connection towards ``peer`` stands now."""
        ...

    def on_lost(self, listener: LossListener) -> None:
        """Call ``listener`` whenever an established connection towards a peer breaks (not when it is disconnected)."""
        ...

    async def receive(self, lane: Lane) -> Parcel:
        """Wait for the next parcel of ``lane``. One task a lane."""
        ...

    def open_direct(self, lane: Lane) -> DirectLane | None:
        """Hand the receiving of a lane to another thread for good; nobody may be in `receive` for it then, or later.

        None where the transport cannot. `post` and `send` work as before.
        """
        ...

    def stats(self, peer: NodeId) -> LinkStats:
        """Counters towards and from ``peer`` (zeros for an unknown one)."""
        ...
