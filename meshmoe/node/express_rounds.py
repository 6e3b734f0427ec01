"""What compiled rounds need to know of the mesh, and what becomes of what they leave: the node's side of them.

Compiled code (`meshmoe.engine.rounds`) asks peers and serves them by tables. Here they are filled: whom to ask for
what and what that takes, the connections (`meshmoe.node.round_peers`), who sends under which name
(`meshmoe.node.round_senders`). All of it is brought up to date when the mesh has changed, and several times a second
anyway. Then what compiled code has counted is counted, too (`meshmoe.node.round_counts`).

What compiled code leaves is a parcel that is not plain (`meshmoe.node.round_lane`), or a round that goes on elsewhere
(`meshmoe.node.round_groups`).
"""

from __future__ import annotations

import logging
from collections import Counter
from time import perf_counter

from meshmoe.core.errors import WireError
from meshmoe.core.ids import NodeId
from meshmoe.engine.compute import ComputeThread
from meshmoe.engine.kernels.limit import SliceLimit
from meshmoe.engine.lean.resident import ResidentTable
from meshmoe.engine.rounds.attending import NOTHING
from meshmoe.engine.rounds.post import PostOffice
from meshmoe.engine.rounds.tables import Office
from meshmoe.node.expert_client import ExpertClient
from meshmoe.node.expert_server import ExpertServer
from meshmoe.node.messenger import Messenger
from meshmoe.node.peer_times import PeerTimes
from meshmoe.node.round_counts import RoundCounts
from meshmoe.node.round_groups import OpenGroup, RoundGroups
from meshmoe.node.round_lane import FRESH_S, RoundLane
from meshmoe.node.round_peers import RoundPeers, RoundsKnowledge
from meshmoe.node.round_senders import RoundSenders, fits
from meshmoe.node.vigil import Vigil
from meshmoe.transport.base import Arrived, DirectLane, Parcel
from meshmoe.transport.native import NativeLane
from meshmoe.transport.precise_timer import sharpen_waits
from meshmoe.wire.codec import Decoded
from meshmoe.wire.messages import CallFailed, ExpertMoved, ExpertReply
from meshmoe.wire.slips import reply_slip

logger = logging.getLogger(__name__)

AGAIN_S = 0.02
"""How soon the tables are brought up to date again, however often the mesh changes."""


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
        self._office = office
        self._mesh = mesh
        self._usual = usual
        self._messenger = messenger
        self._compute = compute
        self._vigil = vigil
        post = office.post
        self._counts = RoundCounts(post, lane, usual, server, times, counts)
        self._senders = RoundSenders(post, lane, messenger.offences)
        self._peers = RoundPeers(post, lane, mesh, usual.patience, times, self._senders, self._counts)
        self._groups = RoundGroups(post, self._peers)
        self._lane = RoundLane(lane, native, office, resident)
        self._version = -1
        self._next_s = self._soonest_s = 0.0
        self._sharp = False

    # -- the lane ----------------------------------------------------------------------------------------------

    def next_parcel(self) -> Parcel | None:
        """Serve and take in what is plain, and return the first parcel that is not; None if nothing is left."""
        while self._lane.attend(None, 0) not in (NOTHING, None):
            if (arrived := self._lane.take_left()) is not None:
                self._admit(arrived)
                return arrived.parcel
        return None

    def _admit(self, arrived: Arrived) -> None:
        """Let compiled code know the sender of a parcel that has passed all checks."""
        parcel, name, key = arrived
        if not parcel.guest and fits(name, key) and (slot := self._peers.slot(parcel.sender)) >= 0:
            self._senders.admit(name, key, parcel.sender, slot)

    @property
    def drained(self) -> bool:
        """Whether nothing is left to be received, or to be sent on."""
        return self._lane.drained

    def enter(self) -> bool:
        """See `Inlet.enter`."""
        return self._lane.enter()

    def wait(self, timeout_s: float, limit: SliceLimit) -> None:
        """Serve and take in what is plain until something else has come, or another thread calls, or so long."""
        if not self._sharp:
            self._sharp = True
            sharpen_waits()
        self.fresh()
        if timeout_s > 0:  # and no longer than what is told of senders may be old
            self._lane.attend(limit, int((perf_counter() + min(timeout_s, FRESH_S)) * 1e9))

    # -- the tables --------------------------------------------------------------------------------------------

    def fresh(self) -> None:
        """Bring the tables up to date, if it is time to."""
        now_s = perf_counter()
        if now_s >= self._next_s or (now_s >= self._soonest_s and self._mesh.version != self._version):
            self._version = self._mesh.version  # before anything else: what changes meanwhile has a later one
            self._next_s, self._soonest_s = now_s + FRESH_S, now_s + AGAIN_S
            self.count()
            self._senders.tell()
            self._peers.tell(now_s)
            numbers = self._office.post.numbers
            numbers[Office.SPARE] = self._vigil.spare(now_s)
            numbers[Office.ATTEMPT_NS] = int(self._usual.patience.attempt_s * 1e9)
            # Those ways of asking want every message for themselves.
            numbers[Office.OPEN] = self._usual.spot_checks is None and not self._usual.hedging.enabled

    def forget(self) -> None:
        """A peer has disappointed: what is told of peers may be wrong."""
        self._next_s = 0.0

    def count(self) -> None:
        """Count what compiled code has counted."""
        self._counts.count(self._peers.names)

    # -- rounds that go on elsewhere ---------------------------------------------------------------------------

    def take_over(self, at: int) -> list[OpenGroup]:
        """A round's messages that are not answered; from now on their answers are left to the caller."""
        return self._groups.take_over(at)

    def moved_bytes(self, at: int) -> tuple[int, int]:
        """What a round has sent and received."""
        return self._groups.moved_bytes(at)

    def answered(self, peer: NodeId, message: ExpertReply | ExpertMoved | CallFailed, decoded: Decoded) -> bool:
        """A peer has answered not by a slip; returns whether to a compiled round that is under way."""
        if not self._groups.waits_for(peer, message.id):
            return False
        tensor = decoded.tensor
        if isinstance(message, ExpertReply) and tensor is not None:
            header = tensor.header
            slip = reply_slip(message.id & 0x7FFFFFFF, header.dtype, header.rows, header.columns)
            if self._office.take_in(self._peers.find(peer), slip + bytes(tensor.data), len(slip)):
                return True
            error = WireError(f"reply from {peer} is not what was asked for, or has values that are no numbers")
            logger.info("expert call to %s: %s", peer, error)
            self._compute.post(self._messenger.blame, peer, "bad_reply", error)
        self.forget()  # what was known of who holds what may be wrong
        self._groups.give_up(peer, message.id)
        return True

    def peer_gone(self, peer: NodeId) -> None:
        """Messages to this peer will not be answered."""
        self._groups.give_up(peer)
