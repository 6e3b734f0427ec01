"""Every ZeroMQ option that meshmoe sets, with its reason; nobody else calls ``setsockopt``.

Three lanes are three TCP connections a direction, so that each has its own queues and its own congestion window.
Queues are kept short on purpose: a parcel that waits in libzmq can neither be counted nor taken back, so most of the
waiting is done in our own bounded queue (`meshmoe.transport.queue`), and libzmq gets only what keeps its thread busy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import zmq

from meshmoe.core.endpoints import Lane
from meshmoe.transport.envelope import ENVELOPE_BYTES_MAX
from meshmoe.transport.keyring import KeyPair, Keyring
from meshmoe.transport.limits import LANE_LIMITS, LaneLimits, message_bytes_max
from meshmoe.transport.zap import zap_domain


@dataclass(frozen=True)
class LaneKnobs:
    """What differs between the lanes.

    Attributes:
        limits: Bounds of our own queue, and of a frame: a longer one closes the connection that carries it, before
            memory is allocated for it (ZMQ_MAXMSGSIZE).
        send_hwm: Messages that libzmq holds towards one peer (ZMQ_SNDHWM) beyond what the kernel has taken. libzmq
            reports progress in batches of half of it, so it must cover the time in which the loop comes round (some
            0.2 ms) twice: 16 parcels of 8 KiB last 1 ms at 1 Gbit/s. What is in here is lost if the connection breaks.
        receive_hwm: Messages held from one peer (ZMQ_RCVHWM) until somebody receives them. Above it TCP pushes back.
    """

    limits: LaneLimits
    send_hwm: int
    receive_hwm: int


LANE_KNOBS: Mapping[Lane, LaneKnobs] = {
    # Bursts of gossip to be taken at once.
    Lane.CONTROL: LaneKnobs(LANE_LIMITS[Lane.CONTROL], send_hwm=64, receive_hwm=256),
    Lane.DATA: LaneKnobs(LANE_LIMITS[Lane.DATA], send_hwm=16, receive_hwm=64),
    # 4 chunks of 1 MiB are 34 ms at 1 Gbit/s.
    Lane.BULK: LaneKnobs(LANE_LIMITS[Lane.BULK], send_hwm=4, receive_hwm=8),
}


@dataclass(frozen=True)
class ZmqKnobs:
    """All of a transport's numbers.

    Attributes:
        lanes: See `LaneKnobs`.
        heartbeat_interval_ms: Idle connections are pinged this often (ZMQ_HEARTBEAT_IVL). libzmq's own thread answers,
            so a node whose Python is busy computing still does.
        heartbeat_timeout_ms: A peer silent for this long after a ping is cut off (ZMQ_HEARTBEAT_TIMEOUT). A frozen
            machine is noticed after interval + timeout = 2.0 s; three pings lost in a row are a second and a half.
        heartbeat_ttl_ms: The same wish, sent to the peer for its end of the connection (ZMQ_HEARTBEAT_TTL): a side that
            only receives notices as early as one that sends. Interval + timeout; libzmq rounds to 100 ms.
        handshake_ms_max: A connection that has not greeted by then is closed (ZMQ_HANDSHAKE_IVL; libzmq's default is
            30 s). The kernel of a frozen peer accepts TCP; only the greeting shows that nobody is behind it. Also
            bounds how long a port scanner costs a descriptor. Ten round trips of a 200 ms link.
        connect_ms_max: A TCP connect is given up after this (ZMQ_CONNECT_TIMEOUT; the kernel's own takes 127 s), so
            that a peer that comes back is found within this plus the back-off.
        reconnect_ms: First pause before connecting again (ZMQ_RECONNECT_IVL); libzmq adds chance to it. Short, because
            a peer that restarts is back in a second.
        reconnect_ms_max: The pause doubles up to here (ZMQ_RECONNECT_IVL_MAX): an address that is gone costs one SYN in
            two seconds and lane.
        tcp_keepalive_idle_s: Kernel keepalives start after this much silence (ZMQ_TCP_KEEPALIVE_IDLE). Heartbeats come
            first; these keep NAT tables warm should heartbeats be switched off.
        backlog: Connections waiting to be accepted (ZMQ_BACKLOG): a whole mesh reconnects at once.
        sockets_max: ZeroMQ sockets of this transport (ZMQ_MAX_SOCKETS; the default of 1023 is enough for 110 peers): a
            lane to a peer takes three, its connection and two for watching that. The process's limit of open files
            (four a lane) is met earlier.
        farewell_ms: How long the *control* lane may take to send what libzmq holds when the whole transport closes
            (ZMQ_LINGER), so that a farewell gets out. Everywhere else LINGER is 0: nobody waits for the dead.
        bulk_thread: Whether bulk has a thread of libzmq to itself: encrypting a chunk takes 2 to 3 ms, in which nothing
            else would be sent.
        strangers_max: Sender names that are kept in mind (identities, counters). A mesh has tens.
    """

    lanes: Mapping[Lane, LaneKnobs] = field(default_factory=lambda: LANE_KNOBS)
    heartbeat_interval_ms: int = 500
    heartbeat_timeout_ms: int = 1500
    heartbeat_ttl_ms: int = 2000
    handshake_ms_max: int = 2000
    connect_ms_max: int = 3000
    reconnect_ms: int = 100
    reconnect_ms_max: int = 2000
    tcp_keepalive_idle_s: int = 30
    backlog: int = 256
    sockets_max: int = 8192
    farewell_ms: int = 200
    bulk_thread: bool = True
    strangers_max: int = 4096

    def apply_receiving(self, raw: zmq.Socket[bytes], lane: Lane, keyring: Keyring | None) -> None:
        """Set the options of the ROUTER that is bound for ``lane``; without a keyring it listens in the clear."""
        self._apply_common(raw, lane)
        if keyring is not None:
            raw.set(zmq.CURVE_SERVER, 1)
            raw.set(zmq.CURVE_SECRETKEY, keyring.own.secret)
            raw.set(zmq.ZAP_DOMAIN, zap_domain(lane))
        raw.set(zmq.RCVHWM, self.lanes[lane].receive_hwm)
        raw.set(zmq.BACKLOG, self.backlog)
        # Without it a ROUTER drops what it cannot deliver and says nothing (17,900 of 20,000 arrived). We never send on
        # it; if somebody ever does, that must be an error and not a mystery.
        raw.set(zmq.ROUTER_MANDATORY, 1)
        # A socket that reconnects before its old connection is known to be dead has the same identity. Without handover
        # the new connection is ignored, and everything it sends is lost. (With it, what the old connection had brought
        # and nobody had received yet is lost: hence a new identity for every socket, see `meshmoe.transport.identity`.)
        raw.set(zmq.ROUTER_HANDOVER, 1)

    def apply_sending(
        self, raw: zmq.Socket[bytes], lane: Lane, identity: bytes, own: KeyPair | None, peer_key: bytes | None
    ) -> None:
        """Set the options of a DEALER towards one peer on ``lane``; with keys it talks to the owner of ``peer_key``."""
        self._apply_common(raw, lane)
        if own is not None and peer_key is not None:
            raw.set(zmq.CURVE_PUBLICKEY, own.public)
            raw.set(zmq.CURVE_SECRETKEY, own.secret)
            raw.set(zmq.CURVE_SERVERKEY, peer_key)
        raw.set(zmq.ROUTING_ID, identity)
        raw.set(zmq.SNDHWM, self.lanes[lane].send_hwm)
        # Nobody answers on a sending socket; what a hostile peer writes there is held in one message at most.
        raw.set(zmq.RCVHWM, 1)
        # Queue only towards connections that exist: what waits for a connection waits in our queue, where it can be
        # counted and dropped, and is not delivered to whoever turns up at that address an hour later.
        raw.set(zmq.IMMEDIATE, 1)
        raw.set(zmq.RECONNECT_IVL, self.reconnect_ms)
        raw.set(zmq.RECONNECT_IVL_MAX, self.reconnect_ms_max)
        raw.set(zmq.CONNECT_TIMEOUT, self.connect_ms_max)

    def _apply_common(self, raw: zmq.Socket[bytes], lane: Lane) -> None:
        raw.set(zmq.LINGER, 0)
        if self.bulk_thread:
            raw.set(zmq.AFFINITY, 2 if lane is Lane.BULK else 1)
        longest_bytes = message_bytes_max(self.lanes[lane].limits.frame_bytes_max) + ENVELOPE_BYTES_MAX
        raw.set(zmq.MAXMSGSIZE, longest_bytes)
        raw.set(zmq.HEARTBEAT_IVL, self.heartbeat_interval_ms)
        raw.set(zmq.HEARTBEAT_TIMEOUT, self.heartbeat_timeout_ms)
        raw.set(zmq.HEARTBEAT_TTL, self.heartbeat_ttl_ms)
        raw.set(zmq.HANDSHAKE_IVL, self.handshake_ms_max)
        raw.set(zmq.TCP_KEEPALIVE, 1)
        raw.set(zmq.TCP_KEEPALIVE_IDLE, self.tcp_keepalive_idle_s)
        # Names and addresses of both families; IPv4 keeps working.
        raw.set(zmq.IPV6, 1)


DEFAULT_KNOBS = ZmqKnobs()
