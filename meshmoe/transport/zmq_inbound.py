"""The receiving half of a lane: a bound ROUTER, and what it takes to turn its messages into parcels.

Anyone who can reach the port can send anything, so nothing that arrives may raise: what is not a parcel of a node on
this lane is dropped, counted, and mentioned in the log now and then.

One thing libzmq does not bound is the number of frames in a message that never ends; it holds them until the last one
has come. Only admission (who may connect at all) helps against that.
"""

from __future__ import annotations

import logging

import zmq

from meshmoe.core.endpoints import Lane
from meshmoe.transport.base import Parcel
from meshmoe.transport.complaints import Complaints
from meshmoe.transport.envelope import unseal
from meshmoe.transport.identity import Identity, parse_identity
from meshmoe.transport.ledger import Ledger
from meshmoe.transport.zmq_knobs import ZmqKnobs
from meshmoe.transport.zmq_socket import ZmqSocket
from meshmoe.wire.frames import PARCEL_BYTES_MAX

_logger = logging.getLogger(__name__)


class InboundLane:
    """Receives the parcels of one lane from all peers, libzmq taking turns between them."""

    def __init__(self, raw: zmq.Socket[bytes], lane: Lane, ledger: Ledger, knobs: ZmqKnobs) -> None:
        self._socket = ZmqSocket(raw)
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
            parcel = self._accept(await self._socket.recv())
            if parcel is not None:
                return parcel

    def close(self) -> None:
        """Stop listening; a waiting `receive` gets `trio.ClosedResourceError`."""
        self._socket.close()

    def _accept(self, frames: list[zmq.Frame]) -> Parcel | None:
        routing_id = frames[0].bytes
        if routing_id[:1] == b"\0":
            # The connection has been taken over by a newer one of its name, and libzmq has given it a name of its own
            # for the rest; its real name is still in the metadata of what it brought. (Or it never had one.)
            routing_id = _announced_identity(frames[-1])
        identity = self._identify(routing_id)
        if identity is None or identity.lane is not self._lane:
            self._refuse(f"a connection that calls itself {routing_id[:100]!r}")
            return None
        views = unseal(frames[1].buffer) if len(frames) == 2 else None
        if views is None:
            self._refuse(f"{identity.node}: a message of {len(frames) - 1} frames that is no parcel")
            return None
        size_bytes = sum(map(len, views))
        if size_bytes > PARCEL_BYTES_MAX:
            self._refuse(f"{identity.node}: a message of {size_bytes} bytes")
            return None
        stats = self._ledger.of(identity.node)
        stats.received_parcels += 1
        stats.received_bytes += size_bytes
        return Parcel(identity.node, identity.generation, views)

    def _identify(self, routing_id: bytes) -> Identity | None:
        identity = self._identities.get(routing_id)
        if identity is None:
            identity = parse_identity(routing_id)
            if identity is not None:
                if len(self._identities) >= self._identities_max:
                    self._identities.clear()
                self._identities[routing_id] = identity
        return identity

    def _refuse(self, what: str) -> None:
        self._complaints.complain(f"{self._lane.name.lower()} lane: dropped what came from {what}")


def _announced_identity(frame: zmq.Frame) -> bytes:
    try:
        announced = frame.get("Identity")
    except (zmq.ZMQError, UnicodeDecodeError):
        return b""
    return str(announced).encode("utf-8")
