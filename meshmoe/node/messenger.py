"""Between the transport and everybody else on a node: parcels become validated messages, messages become parcels.

One task a lane receives and decodes, and hands each message to the one handler registered for its type. Handlers are
plain functions that must not wait: they resolve a pending call, feed a machine, or start a task. A parcel that cannot
be decoded costs its sender a log line and a counter, and this node nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import PeerError, WireError
from meshmoe.core.ids import NodeId
from meshmoe.core.messages import Message
from meshmoe.node.offences import Offences
from meshmoe.transport.base import Parcel, QueueFullError, Transport
from meshmoe.wire.codec import CODEC, Codec, Decoded, VersionError
from meshmoe.wire.frames import Frame, TensorFrame

logger = logging.getLogger(__name__)

Handler = Callable[[Parcel, Decoded], None]
"""Called with who sent it and the decoded message; runs on the trio thread and returns at once."""

_BATCH_MAX = 64
"""Messages handled before other tasks get a turn: a flood on one lane must not starve the node."""


class Messenger:
    """Sends and receives typed messages over a `Transport`."""

    def __init__(self, transport: Transport, codec: Codec = CODEC) -> None:
        self.transport = transport
        self.faults: Counter[str] = Counter()
        self._codec = codec
        self._handlers: dict[type[Message], Handler] = {}
        self._for_guests: set[type[Message]] = set()
        self.offences = Offences()
        self.on_ban: Callable[[NodeId, float], None] = lambda _peer, _for_s: None
        self._receiving: dict[Lane, tuple[trio.CancelScope, trio.Event]] = {}
        self.on_version_error: Callable[[Parcel, VersionError], None] | None = None

    def on(self, message_type: type[Message], handler: Handler, *, from_guests: bool = False) -> None:
        """Register the one handler of a message type; of senders that are not admitted only if it says so."""
        assert message_type not in self._handlers, f"{message_type.__name__} already has a handler"
        self._handlers[message_type] = handler
        if from_guests:
            self._for_guests.add(message_type)

    def post(
        self, peer: NodeId, lane: Lane, message: Message, *payload: Frame, tensor: TensorFrame | None = None
    ) -> int:
        """Send without waiting.

        Returns:
            Bytes handed over.

        Raises:
            UnreachableError: The peer is not connected.
            QueueFullError: It takes messages more slowly than they are made.
        """
        frames = self._codec.encode(message, *payload, tensor=tensor)
        self.transport.post(peer, lane, frames)
        return _size_bytes(frames)

    def try_post(self, peer: NodeId, lane: Lane, message: Message) -> bool:
        """Send if it can be done at once; protocols that repeat themselves need no more."""
        try:
            self.post(peer, lane, message)
        except QueueFullError:
            self.faults["queue_full"] += 1
            return False
        except PeerError:
            self.faults["unreachable"] += 1
            return False
        return True

    async def send(
        self, peer: NodeId, lane: Lane, message: Message, *payload: Frame, tensor: TensorFrame | None = None
    ) -> int:
        """Send, waiting for room in the peer's queue; the caller bounds the wait.

        Returns:
            Bytes handed over.

        Raises:
            UnreachableError: The peer is not connected, or goes away meanwhile.
        """
        frames = self._codec.encode(message, *payload, tensor=tensor)
        await self.transport.send(peer, lane, frames)
        return _size_bytes(frames)

    async def run(self) -> None:
        """Receive on every lane until cancelled."""
        async with trio.open_nursery() as nursery:
            for lane in Lane:
                nursery.start_soon(self.receive_on, lane, name=f"receive {lane.name.lower()}")

    async def stop_receiving(self, lane: Lane) -> None:
        """Leave a lane to somebody else, who hands over by `deliver` what is for the handlers here."""
        scope, ended = self._receiving[lane]
        scope.cancel()
        await ended.wait()

    async def receive_on(self, lane: Lane) -> None:
        """Receive on one lane until cancelled or told to stop."""
        scope, ended = self._receiving[lane] = (trio.CancelScope(), trio.Event())
        handled = 0
        with scope:
            while True:
                parcel = await self.transport.receive(lane)
                self.deliver(parcel, lane)
                handled += 1
                if handled % _BATCH_MAX == 0:
                    await trio.lowlevel.checkpoint()
        ended.set()

    def blame(self, peer: NodeId, kind: str, what: object) -> None:
        """A member did something wrong: count it, log it now and then, and cut off who goes on and on."""
        self.faults[kind] += 1
        count = self.faults[kind]
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: a flood of bad messages is not a flood of log lines
            logger.warning("%s from %s (%d so far): %s", kind.replace("_", " "), peer, count, what)
        ban_s = self.offences.note(peer, kind, trio.current_time())
        if ban_s is not None:
            self.faults["cut_off"] += 1
            logger.warning("%s is cut off for %.0f s: too many bad messages", peer, ban_s)
            self.on_ban(peer, ban_s)

    def deliver(self, parcel: Parcel, lane: Lane) -> None:
        """Decode a parcel and have it handled; never raises."""
        if self.offences.is_banned(parcel.sender, trio.current_time()):
            return
        try:
            decoded = self._codec.decode(parcel.frames)
        except VersionError as error:
            self._fault("other_version", parcel, error)
            if self.on_version_error is not None and lane is Lane.CONTROL:
                self.on_version_error(parcel, error)
            return
        except WireError as error:
            self._fault("bad_message", parcel, error)
            return
        handler = self._handlers.get(type(decoded.message))
        if handler is None:
            self._fault("unexpected_message", parcel, type(decoded.message).__name__)
            return
        if parcel.guest and type(decoded.message) not in self._for_guests:
            self._fault("not_admitted", parcel, type(decoded.message).__name__)
            return
        try:
            handler(parcel, decoded)
        except PeerError as error:  # a handler's own checks: what the message says does not fit the model or the mesh
            self._fault("bad_message", parcel, error)
        except Exception as error:  # a fault of ours, which no message may turn into the end of the node
            self.faults["handler_failed"] += 1
            what = f"{type(error).__name__}: {error}"
            logger.error("%s from %s could not be handled: %s", type(decoded.message).__name__, parcel.sender, what)

    def _fault(self, kind: str, parcel: Parcel, what: object) -> None:
        if parcel.guest:  # who is not even what it says: the transport limits what a guest may say
            self.faults[kind] += 1
        elif kind == "other_version":
            self.faults[kind] += 1
            if self.faults[kind] & (self.faults[kind] - 1) == 0:
                logger.warning("other version from %s (%d so far): %s", parcel.sender, self.faults[kind], what)
        else:
            self.blame(parcel.sender, kind, what)


def _size_bytes(frames: list[Frame]) -> int:
    return sum(frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames)
