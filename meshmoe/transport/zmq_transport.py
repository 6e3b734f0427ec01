"""The transport of real meshes: a ROUTER to listen on for each lane, a DEALER for each peer and lane to send through.

Why one-way sockets: a DEALER that only sends needs no task that waits on it, its queue is all of the traffic in it, and
replies take the replier's own connection, whose state says something about the replier's view of us. With one direction
and one task a socket, the edge-triggered descriptor of ZeroMQ (see `meshmoe.transport.zmq_socket`) loses most of its
teeth, too. docs/decisions/transport-one-way-lanes.md has the measurements.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress

import trio
import zmq

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import DirectLane, LinkStats, LossListener, Parcel, UnreachableError
from meshmoe.transport.identity import Identity, identity_bytes
from meshmoe.transport.keyring import Keyring
from meshmoe.transport.ledger import Ledger
from meshmoe.transport.ports import Ports
from meshmoe.transport.service_nursery import open_service_nursery
from meshmoe.transport.zap import ZapHandler
from meshmoe.transport.zmq_direct import ZmqDirectLane
from meshmoe.transport.zmq_inbound import InboundLane
from meshmoe.transport.zmq_knobs import DEFAULT_KNOBS, ZmqKnobs
from meshmoe.transport.zmq_listen import bind_lanes, zmq_address
from meshmoe.transport.zmq_outbound import MONITORED, OutboundLane
from meshmoe.wire.frames import Frame


@asynccontextmanager
async def open_zmq_transport(
    node: NodeId,
    generation: int,
    listen_host: str = "127.0.0.1",
    listen_port: int = 0,
    *,
    knobs: ZmqKnobs = DEFAULT_KNOBS,
    keyring: Keyring | None = None,
) -> AsyncIterator[ZmqTransport]:
    """Listen, and give the transport; leaving the context closes all of it within a second, whatever peers do.

    Args:
        node: This node's name, told to every peer.
        generation: This life's number.
        listen_host: An address of this machine, or ``0.0.0.0`` / ``::`` for all of them.
        listen_port: Control listens here, data and bulk on the next two; 0 picks three free ports.
        knobs: Bounds and timings.
        keyring: Encrypt every connection, and admit by these keys; None sends in the clear and believes every name.

    Raises:
        ConfigError: The address or a port cannot be listened on.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=2 if knobs.bulk_thread else 1)
    context.set(zmq.MAX_SOCKETS, knobs.sockets_max)
    try:
        async with open_service_nursery() as nursery:
            transport = ZmqTransport(context, nursery, node, generation, listen_host, listen_port, knobs, keyring)
            try:
                yield transport
            finally:
                transport.close()
    finally:
        # Waits for libzmq's threads, and for `farewell_ms` if the control lane has something left to say. Closes what
        # an error may have left open, too: libzmq would wait for a forgotten socket for ever.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(context.destroy, 0)


class ZmqTransport:
    """Implements `meshmoe.transport.base.Transport`; made by `open_zmq_transport`."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        nursery: trio.Nursery,
        node: NodeId,
        generation: int,
        listen_host: str,
        listen_port: int,
        knobs: ZmqKnobs,
        keyring: Keyring | None = None,
    ) -> None:
        self._context = context
        self._nursery = nursery
        self._node = node
        self._generation = generation
        self._knobs = knobs
        self._closed = False
        self._connections = 0
        self._keyring = keyring
        self._wanted: dict[NodeId, Endpoints] = {}
        self._ledger = Ledger(knobs.strangers_max)
        self._ports = Ports(knobs.strangers_max)
        self._listeners: list[LossListener] = []
        self._outbound: dict[NodeId, dict[Lane, OutboundLane]] = {}
        self._direct: list[ZmqDirectLane] = []
        self._zap: ZapHandler | None = None
        if keyring is not None:
            self._zap = ZapHandler(context, keyring)
            nursery.start_soon(self._zap.run)
            keyring.on_change(self._key_changed)
        self._endpoints, listening = bind_lanes(context, listen_host, listen_port, knobs, keyring)
        self._inbound = {lane: InboundLane(raw, lane, self._ledger, knobs, keyring) for lane, raw in listening.items()}

    @property
    def endpoints(self) -> Endpoints:
        """Where this node listens; the host is the one that it was told to listen on."""
        return self._endpoints

    @property
    def bad_messages(self) -> int:
        """Messages dropped because their sender or shape was not that of a node."""
        return sum(lane.bad_messages for lane in self._inbound.values())

    def connect(self, peer: NodeId, endpoints: Endpoints) -> None:
        """See `Transport.connect`. Lanes whose address and key stay the same keep their connection and queue.

        With a keyring, a peer is connected as soon as its key is known.

        Raises:
            UnreachableError: The host is not something one can connect to, or this process may open no more files.
        """
        self._check_open()
        self._wanted[peer] = endpoints
        peer_key = None
        if self._keyring is not None:
            peer_key = self._keyring.key_of(peer)
            if peer_key is None:
                self._close_outbound(peer)
                return
        addresses = {lane: zmq_address(endpoints.host, endpoints.port(lane)) for lane in Lane if endpoints.port(lane)}
        lanes = self._outbound.setdefault(peer, {})
        for lane in Lane:
            current, address = lanes.get(lane), addresses.get(lane)
            if current is not None and (current.address, current.peer_key) != (address, peer_key):
                lanes.pop(lane).close()
                current = None
            if current is None and address is not None:
                try:
                    lanes[lane] = self._open_outbound(peer, lane, address, peer_key)
                except zmq.ZMQError as error:
                    raise UnreachableError(
                        f"no connection to {peer} can be opened: {error} (see `ulimit -n`)"
                    ) from error

    def disconnect(self, peer: NodeId) -> None:
        """See `Transport.disconnect`."""
        self._wanted.pop(peer, None)
        self._close_outbound(peer)

    def _close_outbound(self, peer: NodeId) -> None:
        for outbound in self._outbound.pop(peer, {}).values():
            outbound.close()

    def _key_changed(self, peer: NodeId) -> None:
        endpoints = self._wanted.get(peer)
        if endpoints is not None and not self._closed:
            with suppress(UnreachableError):  # whoever posts to it is told
                self.connect(peer, endpoints)

    def post(self, peer: NodeId, lane: Lane, frames: Sequence[Frame]) -> None:
        """See `Transport.post`."""
        self._lane_to(peer, lane).post(frames)

    async def send(self, peer: NodeId, lane: Lane, frames: Sequence[Frame]) -> None:
        """See `Transport.send`."""
        await self._lane_to(peer, lane).send(frames)

    def reachable(self, peer: NodeId, lane: Lane) -> bool:
        """See `Transport.reachable`."""
        outbound = self._outbound.get(peer, {}).get(lane)
        return outbound is not None and outbound.reachable

    def connected(self, peer: NodeId, lane: Lane) -> bool:
        """See `Transport.connected`."""
        outbound = self._outbound.get(peer, {}).get(lane)
        return outbound is not None and outbound.connected

    def on_lost(self, listener: LossListener) -> None:
        """See `Transport.on_lost`."""
        self._listeners.append(listener)

    async def receive(self, lane: Lane) -> Parcel:
        """See `Transport.receive`."""
        return await self._inbound[lane].receive()

    def open_direct(self, lane: Lane) -> DirectLane:
        """See `Transport.open_direct`."""
        direct = ZmqDirectLane(self._inbound[lane], self._lane_to, lane)
        self._direct.append(direct)
        return direct

    def stats(self, peer: NodeId) -> LinkStats:
        """See `Transport.stats`."""
        stats = self._ledger.snapshot(peer)
        for direct in self._direct:
            stats.add(direct.ledger.snapshot(peer))
        return stats

    def close(self) -> None:
        """Close every socket; called by `open_zmq_transport`."""
        self._closed = True
        for inbound in self._inbound.values():
            inbound.close()
        for direct in self._direct:
            direct.close()
        for lanes in self._outbound.values():
            for lane, outbound in lanes.items():
                outbound.close(linger_ms=self._knobs.farewell_ms if lane is Lane.CONTROL else 0)
        self._outbound.clear()
        if self._zap is not None:
            self._zap.close()

    def _lost(self, peer: NodeId, lane: Lane) -> None:
        for listener in self._listeners:
            listener(peer, lane)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this transport is closed")

    def _lane_to(self, peer: NodeId, lane: Lane) -> OutboundLane:
        lanes = self._outbound.get(peer)
        if lanes is None:
            self._check_open()
            why = "its key is not known yet" if peer in self._wanted else "it is not connected"
            raise UnreachableError(f"{peer} cannot be reached: {why}")
        outbound = lanes.get(lane)
        if outbound is None:
            raise UnreachableError(f"{peer} has told no address of its {lane.name.lower()} lane")
        return outbound

    def _open_outbound(self, peer: NodeId, lane: Lane, address: str, peer_key: bytes | None) -> OutboundLane:
        self._connections += 1
        # Nobody else can guess it, so nobody can take this connection's place at the peer (ROUTER_HANDOVER).
        identity = Identity(lane, self._generation, secrets.randbits(62), self._node)
        own = self._keyring.own if self._keyring is not None else None
        with ExitStack() as undo:
            raw = undo.enter_context(self._context.socket(zmq.DEALER))
            self._knobs.apply_sending(raw, lane, identity_bytes(identity), own, peer_key)
            # pyzmq's get_monitor_socket names the channel after the descriptor, which is given to a new socket before
            # libzmq has let go of the old one's channel: then "address in use".
            channel = f"inproc://monitor-{self._connections}"
            raw.monitor(channel, MONITORED)
            monitor = undo.enter_context(self._context.socket(zmq.PAIR))
            monitor.set(zmq.LINGER, 0)
            monitor.connect(channel)
            outbound = OutboundLane(
                raw,
                monitor,
                address,
                peer_key,
                peer=peer,
                lane=lane,
                limits=self._knobs.lanes[lane].limits,
                port=self._ports.of(peer, lane),
                stats=self._ledger.of(peer),
                nursery=self._nursery,
                on_lost=lambda: self._lost(peer, lane),
            )
            undo.pop_all()
        return outbound
