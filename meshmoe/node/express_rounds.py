"""What compiled rounds need to know of the mesh, and what becomes of what they leave: the node's side of them.

Compiled code (`meshmoe.engine.rounds`) asks peers and serves them by tables. Here they are filled: whom to ask for
what and what that takes, the connections, who sends under which name. All of it is brought up to date when the mesh has
changed, and several times a second anyway; a table that is out of date costs a detour, as in `meshmoe.node.routes`.
Then what compiled code has counted is counted, too.

Nobody is let in here: a sender gets into the tables when a message of its has passed all checks of the transport, and
out of them when it would not any more. What compiled code does not know goes through those checks, message by message.
"""

from __future__ import annotations

import ctypes
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import NamedTuple, Protocol, runtime_checkable

import trio

from meshmoe.core.errors import WireError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.engine.compute import ComputeThread
from meshmoe.engine.kernels.limit import SliceLimit
from meshmoe.engine.lean.attention import Ints
from meshmoe.engine.lean.resident import ResidentTable
from meshmoe.engine.rounds.attending import FOREIGN, MESSAGE_BYTES, NOTHING
from meshmoe.engine.rounds.post import PostOffice
from meshmoe.engine.rounds.tables import (
    KEY_BYTES_MAX,
    NAME_BYTES_MAX,
    PEERS_MAX,
    SENDERS_MAX,
    Cost,
    Group,
    Office,
    Pair,
    Peer,
    Round,
    Sender,
)
from meshmoe.node.expert_client import ExpertClient
from meshmoe.node.expert_server import ExpertServer
from meshmoe.node.messenger import Messenger
from meshmoe.node.peer_times import PeerTimes
from meshmoe.node.vigil import SOON_S, Vigil
from meshmoe.transport.base import DirectLane, Parcel
from meshmoe.transport.native import NativeLane
from meshmoe.transport.native_tables import PORT_WORDS, Port
from meshmoe.transport.precise_timer import sharpen_waits
from meshmoe.wire.codec import Codec, Decoded
from meshmoe.wire.messages import CallFailed, ExpertCall, ExpertMoved, ExpertReply
from meshmoe.wire.slips import reply_slip

logger = logging.getLogger(__name__)

FRESH_S = 0.25
"""How old what is told of peers may be."""

AGAIN_S = 0.02
"""How soon it is told again, however often the mesh changes."""

_OF_PORT = 1000
"""Where counters of ports stand among those of peers."""

_MUCH_BYTES = 1 << 20
"""What a byte costs is told from a payload of so many."""


@runtime_checkable
class RoundsKnowledge(Protocol):
    """What has to be known of the mesh; asked on the compute thread.

    Attributes:
        node: This one.
    """

    node: NodeId

    @property
    def version(self) -> int:
        """See `meshmoe.node.expert_client.MeshKnowledge`."""
        ...

    @property
    def holders_version(self) -> int:
        """Grows with every change of who holds what, or of who is there."""
        ...

    def holder_map(self) -> Mapping[ExpertId, Sequence[NodeId]]:
        """All experts that somebody holds, this node included: a copy."""
        ...

    def suspected(self, peer: NodeId) -> bool | None:
        """Whether membership suspects a peer; None if it is not there."""
        ...

    def call_time_s(self, peer: NodeId, payload_bytes: int) -> float:
        """See `meshmoe.node.expert_client.MeshKnowledge`."""
        ...


class OpenGroup(NamedTuple):
    """A message of a compiled round that is not answered."""

    number: int
    peer: NodeId
    experts: list[int]
    sent_s: float
    deadline_s: float


class _Known(NamedTuple):
    """Who sends under a name."""

    node: NodeId
    key: bytes


class ExpressRounds:
    """See the module; belongs to the compute thread."""

    def __init__(
        self,
        lane: DirectLane,
        native: NativeLane,
        office: PostOffice,
        resident: ResidentTable,
        mesh: RoundsKnowledge,
        usual: ExpertClient,
        server: ExpertServer,
        times: PeerTimes,
        messenger: Messenger,
        compute: ComputeThread,
        vigil: Vigil,
        counts: Counter[str],
    ) -> None:
        """Open an office.

        Args:
            lane: The data lane.
            native: Of the lane.
            office: Where compiled rounds are made.
            resident: Of the engine.
            mesh: Who holds what, and how far away.
            usual: The usual way of asking.
            server: The usual way of serving; counts rows.
            times: How long peers take; shared with the express.
            messenger: Knows who is not listened to, and hears who answers wrongly.
            compute: The thread.
            vigil: Whether to wait awake.
            counts: See `Express.counts`.
        """
        self._lane = lane
        self._office = office
        self._resident = resident
        self._mesh = mesh
        self._usual = usual
        self._server = server
        self._times = times
        self._messenger = messenger
        self._compute = compute
        self._vigil = vigil
        self._counts = counts
        self._clock = trio.lowlevel.current_clock()
        self._init = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(native.functions.zmq_msg_init)
        self._slots: dict[NodeId, int] = {}
        self._names: list[NodeId] = []
        self._ports: list[ctypes.Array[ctypes.c_int64] | None] = []
        self._known: dict[bytes, _Known] = {}
        self._counted: dict[tuple[int, int], int] = {}
        self._version = self._holders_version = -1
        self._next_s = self._soonest_s = 0.0
        self._sharp = False
        self._begin(native)

    def _begin(self, native: NativeLane) -> None:
        numbers, functions = self._office.post.numbers, native.functions
        numbers[Office.RECV], numbers[Office.CLOSE] = functions.zmq_msg_recv, functions.zmq_msg_close
        numbers[Office.DATA], numbers[Office.SIZE] = functions.zmq_msg_data, functions.zmq_msg_size
        numbers[Office.MORE], numbers[Office.GETS] = functions.zmq_msg_more, functions.zmq_msg_gets
        numbers[Office.SEND], numbers[Office.SOCKET] = functions.zmq_send, native.socket
        numbers[Office.DESCRIPTOR], numbers[Office.WAKE] = native.descriptor, native.wake_descriptor
        numbers[Office.EMPTY] = 0
        self._ready_messages()
        codec = Codec((ExpertCall, ExpertReply))
        self._office.open_lane(codec.slip_header("call"), codec.slip_header("reply"), b"User-Id")

    def _ready_messages(self) -> None:
        messages = int(self._office.post.numbers[Office.MESSAGES])
        self._init(messages)
        self._init(messages + MESSAGE_BYTES)

    # -- the lane ----------------------------------------------------------------------------------------------

    def next_parcel(self) -> Parcel | None:
        """Serve and take in what is plain, and return the first parcel that is not; None if nothing is left."""
        while self._attend(None, 0) not in (NOTHING, None):
            if (parcel := self._left()) is not None:
                return parcel
        return None

    @property
    def drained(self) -> bool:
        """Whether nothing is left to be received, or to be sent on."""
        numbers = self._office.post.numbers
        return bool(numbers[Office.EMPTY]) and not numbers[Office.LEFT] and not numbers[Office.KEPT]

    def enter(self) -> bool:
        """See `Inlet.enter`."""
        due_s = self._lane.due_s()
        due_ns = int((perf_counter() + due_s) * 1e9) if due_s < FRESH_S else 0
        self._office.post.numbers[Office.DUE_NS] = due_ns
        return self._lane.enter()

    def wait(self, timeout_s: float, limit: SliceLimit) -> None:
        """Serve and take in what is plain until something else has come, or another thread calls, or so long."""
        if not self._sharp:
            self._sharp = True
            sharpen_waits()
        self.fresh()
        if timeout_s > 0:  # and no longer than what is told of senders may be old
            self._attend(limit, int((perf_counter() + min(timeout_s, FRESH_S)) * 1e9))

    def _attend(self, limit: SliceLimit | None, until_ns: int) -> int | None:
        if not self.enter():
            return None
        try:
            snapshot = self._resident.snapshot()
            return self._office.attend(snapshot.addresses, 0 if limit is None else limit.address, until_ns)
        finally:
            self._lane.leave()
            self._lane.drained(bool(self._office.post.numbers[Office.EMPTY]))

    def _left(self) -> Parcel | None:
        numbers = self._office.post.numbers
        kind, numbers[Office.LEFT] = int(numbers[Office.LEFT]), 0
        if not kind:
            return None
        messages = int(numbers[Office.MESSAGES])
        try:
            if kind != FOREIGN:
                self._lane.refuse(messages)
                return None
            arrived = self._lane.parcel(messages)
        finally:
            self._ready_messages()
        if arrived is None:
            return None
        if not arrived.parcel.guest:
            self._admit(arrived.routing_id, arrived.user_id, arrived.parcel.sender)
        return arrived.parcel

    # -- who is there ------------------------------------------------------------------------------------------

    def fresh(self) -> None:
        """Bring the tables up to date, if it is time to."""
        now_s = perf_counter()
        if now_s >= self._next_s or (now_s >= self._soonest_s and self._mesh.version != self._version):
            self._version = self._mesh.version  # before anything else: what changes meanwhile has a later one
            self._next_s, self._soonest_s = now_s + FRESH_S, now_s + AGAIN_S
            self.count()
            self._tell_senders()
            if self._mesh.holders_version != self._holders_version:
                self._tell_holders()
            self._tell_peers(now_s)
            numbers = self._office.post.numbers
            numbers[Office.SPARE] = self._vigil.spare(now_s)
            numbers[Office.ATTEMPT_NS] = int(self._usual.patience.attempt_s * 1e9)
            # Those ways of asking want every message for themselves.
            numbers[Office.OPEN] = self._usual.spot_checks is None and not self._usual.hedging.enabled

    def forget(self) -> None:
        """A peer has disappointed: what is told of peers may be wrong."""
        self._next_s = 0.0

    def _slot(self, peer: NodeId) -> int:
        """The peer's row; -1 if there are too many."""
        slot = self._slots.get(peer)
        if slot is not None:
            return slot
        if len(self._names) < PEERS_MAX:
            slot = len(self._names)
            self._names.append(peer)
            self._ports.append(None)
        else:
            waited_for = set(self._office.post.groups[:, :, Group.PEER].ravel().tolist())
            gone = [
                slot
                for name, slot in self._slots.items()
                if self._mesh.suspected(name) is None and slot not in waited_for
            ]
            if not gone:
                return -1
            slot = gone[0]
            self.count()
            del self._slots[self._names[slot]]
            for sender in [sender for sender, known in self._known.items() if known.node == self._names[slot]]:
                del self._known[sender]
            self._write_senders()
            self._names[slot] = peer
            owners = self._office.post.owners
            owners &= ~(1 << slot)
            self._holders_version = -1
        self._slots[peer] = slot
        self._office.post.numbers[Office.PEERS] = len(self._names)
        self._tell_peer(peer, slot, perf_counter())
        for rank, name in enumerate(sorted(self._slots)):
            self._office.post.peers[self._slots[name], Peer.RANK] = rank
        return slot

    def _tell_peers(self, now_s: float) -> None:
        suspected = distrusted = 0
        for peer, slot in self._slots.items():
            self._tell_peer(peer, slot, now_s)
            suspected |= bool(self._mesh.suspected(peer)) << slot
            distrusted |= self._times.distrusted(peer, now_s) << slot
        numbers = self._office.post.numbers
        numbers[Office.SUSPECTED], numbers[Office.DISTRUSTED] = suspected, distrusted

    def _tell_peer(self, peer: NodeId, slot: int, now_s: float) -> None:
        post, mesh = self._office.post, self._mesh
        port = self._lane.port(peer)
        row = post.peers[slot]
        if port != row[Peer.PORT]:
            self._count_sent(slot)
            row[Peer.PORT] = port
            words = self._ports[slot] = (ctypes.c_int64 * PORT_WORDS).from_address(port) if port else None
            for at in (Port.SENT_PARCELS, Port.SENT_BYTES):
                self._counted[slot, _OF_PORT + at] = words[at] if words is not None else 0
        fixed_s = mesh.call_time_s(peer, 0)
        byte_s = (mesh.call_time_s(peer, _MUCH_BYTES) - fixed_s) / _MUCH_BYTES
        post.costs[slot, Cost.FIXED_S], post.costs[slot, Cost.BYTE_S] = fixed_s, byte_s
        row[Peer.DEADLINE_NS] = int(self._times.deadline_s(peer, self._usual.patience.attempt_s) * 1e9)
        usual_s = self._times.usual_s(peer)
        row[Peer.USUAL_NS] = int(usual_s * 1e9) if usual_s <= SOON_S else 0

    def _tell_holders(self) -> None:
        self._holders_version = self._mesh.holders_version
        owners = self._office.post.owners
        layers, experts = owners.shape
        bits = [[0] * experts for _ in range(layers)]
        for (layer, expert), holders in self._mesh.holder_map().items():
            if layer < layers and expert < experts:
                for peer in holders:
                    if peer != self._mesh.node and (slot := self._slot(peer)) >= 0:
                        bits[layer][expert] |= 1 << slot
        owners[:] = bits

    # -- who sends ---------------------------------------------------------------------------------------------

    def _admit(self, name: bytes, key: bytes, node: NodeId) -> None:
        """What comes under this name and with this key is a node's."""
        if len(name) > NAME_BYTES_MAX or len(key) > KEY_BYTES_MAX or self._slot(node) < 0:
            return
        if len(self._known) >= SENDERS_MAX:
            self._known.clear()
        self._known[name] = _Known(node, key)
        self._write_senders()

    def _tell_senders(self) -> None:
        """Forget those whose messages would not pass any more."""
        now_s = self._clock.current_time()
        gone = [
            name
            for name, known in self._known.items()
            if self._messenger.offences.is_banned(known.node, now_s)
            or not self._lane.still(name, known.key, known.node)
        ]
        for name in gone:
            del self._known[name]
        if gone:
            self._write_senders()

    def _write_senders(self) -> None:
        post = self._office.post
        for at, (name, known) in enumerate(self._known.items()):
            post.names[at, : len(name)] = bytearray(name)
            post.keys[at, : len(known.key)] = bytearray(known.key)
            row = post.senders[at]
            row[Sender.NAME_BYTES], row[Sender.KEY_BYTES] = len(name), len(known.key)
            row[Sender.PEER] = self._slots.get(known.node, -1)
        post.numbers[Office.SENDERS] = len(self._known)

    # -- what was done -----------------------------------------------------------------------------------------

    def count(self) -> None:
        """Count what compiled code has counted."""
        post, numbers = self._office.post, self._office.post.numbers
        for at, name in ((Office.SENT, "sent"), (Office.ANSWERED, "answered"), (Office.SERVED, "served")):
            self._counts[name] += self._more(-1, at, int(numbers[at]))
        self._counts["rounds"] += self._more(-1, Office.FINISHED, int(numbers[Office.FINISHED]))
        self._server.rows_served += self._more(-1, Office.ROWS_SERVED, int(numbers[Office.ROWS_SERVED]))
        now_s = self._clock.current_time()
        for peer, took_ns, _ in post.log[: int(numbers[Office.LOGGED])].tolist():
            self._times.answered(self._names[peer], took_ns / 1e9)
            self._usual.latency.note(took_ns / 1e9, now_s)
        numbers[Office.LOGGED] = 0
        for slot, peer in enumerate(self._names):
            row = post.peers[slot].tolist()
            self._usual.calls_by_peer[peer] += self._more(slot, Peer.ROWS_ASKED, row[Peer.ROWS_ASKED])
            parcels = self._more(slot, Peer.RECEIVED_PARCELS, row[Peer.RECEIVED_PARCELS])
            if parcels:
                self._lane.heard(peer, parcels, self._more(slot, Peer.RECEIVED_BYTES, row[Peer.RECEIVED_BYTES]))
            self._count_sent(slot)

    def _count_sent(self, slot: int) -> None:
        words = self._ports[slot]
        if words is not None and (parcels := self._more(slot, _OF_PORT + Port.SENT_PARCELS, words[Port.SENT_PARCELS])):
            size_bytes = self._more(slot, _OF_PORT + Port.SENT_BYTES, words[Port.SENT_BYTES])
            self._lane.sent(self._names[slot], parcels, size_bytes)

    def _more(self, slot: int, what: int, total: int) -> int:
        """How much a counter has grown since the last time."""
        key = slot, what
        before = self._counted.get(key, 0)
        self._counted[key] = total
        return total - before

    # -- rounds that go on elsewhere ---------------------------------------------------------------------------

    def take_over(self, at: int) -> list[OpenGroup]:
        """A round's messages that are not answered; from now on their answers are left to the caller."""
        post = self._office.post
        round_ = post.rounds[at].tolist()
        experts: list[list[int]] = [[] for _ in range(round_[Round.GROUPS])]
        for pair in post.pairs[at, : round_[Round.PAIRS]].tolist():
            mine = experts[pair[Pair.GROUP]]
            if not mine or mine[-1] != pair[Pair.EXPERT]:
                mine.append(pair[Pair.EXPERT])
        found = []
        for group, asked in zip(post.groups[at].tolist(), experts, strict=False):
            if group[Group.STATE] == 1:
                peer = self._names[group[Group.PEER]]
                times = group[Group.SENT_NS] / 1e9, group[Group.DEADLINE_NS] / 1e9
                found.append(OpenGroup(group[Group.ID], peer, asked, *times))
        post.rounds[at, Round.STATE] = 0
        return found

    def answered(self, peer: NodeId, message: ExpertReply | ExpertMoved | CallFailed, decoded: Decoded) -> bool:
        """A peer has answered not by a slip; returns whether to a compiled round that is under way."""
        slot, tensor = self._slots.get(peer, -1), decoded.tensor
        if not any(group[Group.ID] == message.id for _, group in self._open(slot)):
            return False
        if isinstance(message, ExpertReply) and tensor is not None:
            header = tensor.header
            slip = reply_slip(message.id & 0x7FFFFFFF, header.dtype, header.rows, header.columns)
            if self._office.take_in(slot, slip + bytes(tensor.data), len(slip)):
                return True
            error = WireError(f"reply from {peer} is not what was asked for, or has values that are no numbers")
            logger.info("expert call to %s: %s", peer, error)
            self._compute.post(self._messenger.blame, peer, "bad_reply", error)
        self.forget()  # what was known of who holds what may be wrong
        self._give_up(slot, message.id)
        return True

    def peer_gone(self, peer: NodeId) -> None:
        """Messages to this peer will not be answered."""
        self._give_up(self._slots.get(peer, -1), None)

    def _open(self, slot: int) -> list[tuple[int, Ints]]:
        """Messages to a peer that are not answered, and the rounds that they belong to."""
        post = self._office.post
        return [
            (at, group)
            for at, round_ in enumerate(post.rounds.tolist())
            if round_[Round.STATE] == 1
            for group in post.groups[at, : round_[Round.GROUPS]]
            if group[Group.STATE] == 1 and group[Group.PEER] == slot
        ]

    def _give_up(self, slot: int, number: int | None) -> None:
        """Messages to a peer, or the one of that number, will not be answered: others have to be asked."""
        for at, group in self._open(slot):
            if number is None or group[Group.ID] == number:
                round_ = self._office.post.rounds[at]
                group[Group.STATE] = 3
                round_[Round.OPEN] -= 1
                round_[Round.FAILED] += 1
                if round_[Round.OPEN] == 0:
                    round_[Round.STATE] = 2

    def moved_bytes(self, at: int) -> tuple[int, int]:
        """What a round has sent and received."""
        row = self._office.post.rounds[at]
        return int(row[Round.SENT_BYTES]), int(row[Round.RECEIVED_BYTES])
