"""The receiving half of a lane: a bound ROUTER, and what it takes to turn its messages into parcels.

Nothing that arrives may raise: what is not a parcel of a node on this lane is dropped, counted, and mentioned in the
log now and then. With a keyring, every message carries the key that its connection has proved (its ZAP user id), and
counts as coming from the node that the key belongs to at this moment, whatever the connection calls itself: one that
calls itself otherwise is a guest on the control lane, who may say little, and is cut off on the others.

Cutting off means to shut the TCP connection down by its file descriptor, since ZeroMQ has no word for it. By the time a
message is read its connection may be gone and the number be that of another one; what is hit then is another
connection from the same address to the same port, and that comes back in a moment.

One thing libzmq does not bound is the number of frames in a message that never ends; it holds them until the last one
has come. Only admission (who may connect at all) helps against that.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

import trio
import zmq

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import Parcel
from meshmoe.transport.complaints import Complaints
from meshmoe.transport.envelope import unseal
from meshmoe.transport.identity import Identity, parse_identity
from meshmoe.transport.keyring import Keyring
from meshmoe.transport.ledger import Ledger
from meshmoe.transport.native import NativeFrame
from meshmoe.transport.zap import GuestBook
from meshmoe.transport.zmq_knobs import ZmqKnobs
from meshmoe.transport.zmq_socket import ZmqSocket
from meshmoe.wire.frames import PARCEL_BYTES_MAX

AnyFrame = zmq.Frame | NativeFrame
"""Of a message, received by pyzmq or by compiled code."""

_logger = logging.getLogger(__name__)


class InboundLane:
    """Receives the parcels of one lane from all peers, libzmq taking turns between them."""

    def __init__(
        self, raw: zmq.Socket[bytes], lane: Lane, ledger: Ledger, knobs: ZmqKnobs, keyring: Keyring | None
    ) -> None:
        self._socket = ZmqSocket(raw)
        self._keyring = keyring
        self._guests = GuestBook(burst=32, per_s=4)
        self._clock = trio.lowlevel.current_clock()  # can be read on any thread
        self._port = int((raw.get(zmq.LAST_ENDPOINT) or b"").rstrip(b"\0").rpartition(b":")[2])  # type: ignore[union-attr]
        self._lane = lane
        self._ledger = ledger
        self._identities_max = knobs.strangers_max
        self._identities: dict[bytes, Identity] = {}
        self._complaints = Complaints(_logger)

    @property
    def bad_messages(self) -> int:
        """Messages dropped because they were no parcels."""
        return self._complaints.count

    async def receive(self) -> Parcel:
        """Wait for the next parcel."""
        while True:
            routing_id, *frames = await self._socket.recv()
            parcel = self.accept(routing_id.bytes, frames)
            if parcel is not None:
                return parcel

    def hand_over(self, ledger: Ledger) -> zmq.Socket[bytes]:
        """Leave the receiving to another thread, which then is the only one to use the socket and `accept`.

        Args:
            ledger: That thread's own.
        """
        self._ledger = ledger
        return self._socket.hand_over()

    def close(self) -> None:
        """Stop listening; a waiting `receive` gets `trio.ClosedResourceError`."""
        self._socket.close()

    def accept(self, routing_id: bytes, frames: Sequence[AnyFrame]) -> Parcel | None:
        """Make a parcel of a message; None, counted, if it is none.

        Args:
            routing_id: The connection's.
            frames: What came from it; at least one.
        """
        if routing_id[:1] == b"\0":
            # The connection has been taken over by a newer one of its name, and libzmq has given it a name of its own
            # for the rest; its real name is still in the metadata of what it brought. (Or it never had one.)
            routing_id = _announced_identity(frames[-1])
        identity = self._identify(routing_id)
        if identity is None or identity.lane is not self._lane:
            self.refuse(f"a connection that calls itself {routing_id[:100]!r}")
            return None
        guest = ""
        if self._keyring is not None:
            problem, guest = self._check_key(self._keyring, frames[-1], identity.node)
            if problem:
                self.refuse(f"{identity.node}: {problem}")
                cut_off(frames[-1], self._port)
                return None
        views = unseal(frames[0].buffer) if len(frames) == 1 else None
        if views is None:
            self.refuse(f"{identity.node}: a message of {len(frames)} frames that is no parcel")
            return None
        size_bytes = sum(map(len, views))
        if size_bytes > PARCEL_BYTES_MAX:
            self.refuse(f"{identity.node}: a message of {size_bytes} bytes")
            return None
        if not guest:
            stats = self._ledger.of(identity.node)
            stats.received_parcels += 1
            stats.received_bytes += size_bytes
        return Parcel(identity.node, identity.generation, views, guest)

    def user_of(self, frame: AnyFrame) -> bytes:
        """The key that came with a frame which `accept` has taken, as libzmq writes it; empty without a keyring."""
        return str(frame.get("User-Id")).encode() if self._keyring is not None else b""

    def still(self, user_id: bytes, node: NodeId) -> bool:
        """Whether `accept` would take that key for ``node``'s now."""
        if self._keyring is None:
            return True
        user = user_id.decode()
        return self._keyring.node_of(user) == node and not self._keyring.is_banned(user, self._clock.current_time())

    def _check_key(self, keyring: Keyring, frame: AnyFrame, node: NodeId) -> tuple[str, str]:
        """What is wrong with the key of a connection that calls itself ``node``, and the key if it is a guest's."""
        try:
            user = str(frame.get("User-Id"))
        except zmq.ZMQError:
            return "no key came with it", ""
        owner, now_s = keyring.node_of(user), self._clock.current_time()
        if keyring.is_banned(user, now_s):
            return "it is cut off for a while", ""
        if owner == node:
            return "", ""
        if self._lane is Lane.CONTROL:
            return ("", user) if self._guests.admits(user.encode(), now_s) else ("more than a guest may say", "")
        return f"the key is that of {owner or 'nobody'}", ""

    def _identify(self, routing_id: bytes) -> Identity | None:
        identity = self._identities.get(routing_id)
        if identity is None:
            identity = parse_identity(routing_id)
            if identity is not None:
                if len(self._identities) >= self._identities_max:
                    self._identities.clear()
                self._identities[routing_id] = identity
        return identity

    def refuse(self, what: str) -> None:
        """Count, and mention now and then, what was dropped."""
        self._complaints.complain(f"{self._lane.name.lower()} lane: dropped what came from {what}")


def cut_off(frame: AnyFrame, port: int) -> None:
    """Shut down the connection that a message came from, if it still is a connection to ``port``."""
    with suppress(OSError, zmq.ZMQError), socket.socket(fileno=os.dup(int(frame.get(zmq.SRCFD)))) as connection:
        if connection.getsockname()[1] == port:
            connection.shutdown(socket.SHUT_RDWR)


def _announced_identity(frame: AnyFrame) -> bytes:
    try:
        announced = frame.get("Identity")
    except (zmq.ZMQError, UnicodeDecodeError):
        return b""
    return str(announced).encode("utf-8")
