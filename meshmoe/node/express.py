"""Expert calls that never leave the compute thread: sent, received, computed and answered by it.

On the usual way (`meshmoe.node.expert_client`, `meshmoe.node.expert_server`) an expert call changes threads four times
besides libzmq's own: compute thread to trio and back, at both ends. Each change costs 50 to 100 us, the call itself 30.
Here the compute thread serves the data lane itself: between two slices it looks what has come, and with nothing to do
it waits there.

The express takes the plain case only: every expert has a holder, and the holders answer in time. Whatever else happens
goes the usual way, which knows about other holders, patience, hints, and what to tell a peer that is wrong: calls out
that failed (`ExpertClient.complete`), calls in for experts that are not here or that are not valid
(`Messenger.deliver`), and every other message of the lane.

This file has the lane: what comes in, and who it is for. `meshmoe.node.express_client` asks on it,
`meshmoe.node.express_server` serves peers.

Where the transport has a lane for compiled code, what is plainest of all does not even come here: rounds of decode
steps are made, and served, without the interpreter (`meshmoe.node.express_rounds`). Then this file has what that
leaves.

Invariants: an id is even here and odd there, so that an answer finds its asker. Every call out has a deadline, every
wait a bound. Only so many calls are served, and only so many parcels on their way to trio, at once.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from time import perf_counter

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import WireError
from meshmoe.core.ids import NodeId
from meshmoe.engine.compute import ComputeThread
from meshmoe.engine.engine import Engine
from meshmoe.engine.job import Job
from meshmoe.engine.remote import LayerCall
from meshmoe.node.expert_client import ExpertClient, MeshKnowledge
from meshmoe.node.expert_server import ExpertServer
from meshmoe.node.express_client import ExpressCall, ExpressClient
from meshmoe.node.express_rounds import ExpressRounds
from meshmoe.node.express_server import CallIn, ExpressServer
from meshmoe.node.messenger import Messenger
from meshmoe.node.round_peers import RoundsKnowledge
from meshmoe.node.vigil import Vigil
from meshmoe.transport.base import DirectLane, Parcel
from meshmoe.wire.codec import CODEC, Codec
from meshmoe.wire.messages import CallCancel, CallFailed, ExpertCall, ExpertMoved, ExpertReply

logger = logging.getLogger(__name__)

WAIT_S_MAX = 1.0
PARCELS_A_POLL = 16
"""Parcels taken in before the thread goes on computing: some 20 us each, or 100 with little calls that are served."""
_ANSWERS = (ExpertReply, ExpertMoved, CallFailed)
HANDED_OVER_MAX = 256
"""Parcels on their way to trio; more are dropped, as a network would, until it has caught up."""


class Express:
    """Implements `meshmoe.engine.inlet.Inlet`; everything belongs to the compute thread unless said otherwise."""

    def __init__(
        self,
        lane: DirectLane,
        engine: Engine,
        mesh: MeshKnowledge,
        client: ExpertClient,
        server: ExpertServer,
        messenger: Messenger,
        vigil: Vigil,
    ) -> None:
        """Serve a lane.

        Args:
            lane: The data lane.
            engine: Whose thread serves it.
            mesh: Who holds what, and how far away.
            client: The usual way of asking.
            server: The usual way of serving.
            messenger: Takes what goes the usual way.
            vigil: Whether to wait awake.
        """
        self._vigil = vigil
        self.counts: Counter[str] = Counter()
        """Messages out and answered, calls of peers served, those served together, parcels handed over and dropped."""
        self._compute: ComputeThread = engine.compute
        self._lane = lane
        self._messenger = messenger
        self._codec = Codec(CODEC.message_types)
        self._clock = trio.lowlevel.current_clock()
        self._handed_over = 0
        self._drained = False
        """Whether the last poll has taken in all that had come."""
        self._lock = threading.Lock()
        self.client = ExpressClient(lane, self._codec, self._compute, mesh, client, messenger, vigil, self.counts)
        """Asks."""
        self.server = ExpressServer(lane, self._codec, engine, server, self._hand_over, vigil, self.counts)
        """Serves peers."""
        self.rounds = self.client.rounds = self._open_rounds(engine, mesh, client, server, messenger)
        """Compiled rounds, where there can be any."""
        self.send = self.client.send
        """See `Inlet.send`. The method itself: a step has some microseconds for each of its layers."""

    def _open_rounds(
        self, engine: Engine, mesh: MeshKnowledge, client: ExpertClient, server: ExpertServer, messenger: Messenger
    ) -> ExpressRounds | None:
        native, made = self._lane.native(), engine.rounds
        if native is None or made is None or not isinstance(mesh, RoundsKnowledge):
            return None
        return ExpressRounds(
            self._lane,
            native,
            *made,
            mesh,
            client,
            server,
            self.client.times,
            messenger,
            self._compute,
            self._vigil,
            self.counts,
        )

    # -- Inlet -------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """See `Inlet.poll`."""
        self._drained = False
        calls: dict[int, list[CallIn]] = {}
        receive = self._lane.receive if self.rounds is None else self.rounds.next_parcel
        for _ in range(PARCELS_A_POLL):
            try:
                parcel = receive()
                if parcel is None:
                    self._drained = True
                    break
                self._take(parcel, calls)
            except Exception:
                self._fault()
        for layer, of_layer in calls.items():
            try:
                for one in self.server.serve_at_once(layer, of_layer):
                    self._serve_later(one)
            except Exception:
                self._fault()
        client = self.client
        if client.asked and perf_counter() >= client.soonest_s:
            client.expire(perf_counter())

    def descriptor(self) -> int | None:
        """See `Inlet.descriptor`."""
        if not self._drained or self.client.asked or (self.rounds is not None and not self.rounds.drained):
            return None
        return self._lane.descriptor()

    def wait(self) -> None:
        """See `Inlet.wait`."""
        client, now_s = self.client, perf_counter()
        timeout_s = min(WAIT_S_MAX, max(0.0, client.soonest_s - now_s)) if client.asked else WAIT_S_MAX
        if self.rounds is not None:
            self.rounds.wait(timeout_s, self._compute.limit)
        else:
            self._lane.wait(timeout_s, self._vigil.awake_s(now_s))

    def wake(self) -> None:
        """See `Inlet.wake`. On any thread."""
        self._lane.wake()

    def fresh(self) -> None:
        """See `Inlet.fresh`."""
        if self.rounds is not None:
            self.rounds.fresh()

    def enter(self) -> bool:
        """See `Inlet.enter`."""
        return self.rounds is not None and self.rounds.enter()

    def leave(self) -> None:
        """See `Inlet.leave`."""
        self._lane.leave()

    def adopt(self, job: Job, call: LayerCall, at: int, answered: set[int]) -> ExpressCall:
        """See `Inlet.adopt`."""
        return self.client.adopt(job, call, at, answered)

    def give_up(self, at: int) -> None:
        """See `Inlet.give_up`."""
        self.client.give_up(at)

    # -- from other threads ------------------------------------------------------------------------------------

    def peer_gone(self, peer: NodeId) -> None:
        """On the trio thread: calls to this peer will not be answered."""
        self._compute.tell(self.client.peer_gone, peer)

    def serving(self) -> int:
        """Peers' calls, queued or computed; on any thread."""
        return self.server.serving()

    # -- what comes in -----------------------------------------------------------------------------------------

    def _take(self, parcel: Parcel, calls: dict[int, list[CallIn]]) -> None:
        """Do what a parcel asks for; a peer's decode call is put with those of its layer, to be served together."""
        if self._messenger.offences.is_banned(parcel.sender, self._clock.current_time()):
            return None
        try:
            decoded = self._codec.decode(parcel.frames)
        except WireError:
            return self._hand_over(parcel)
        message = decoded.message
        if isinstance(message, ExpertCall):
            one = CallIn(parcel, message, decoded)
            return calls.setdefault(message.layer, []).append(one) if message.decode else self._serve_later(one)
        if isinstance(message, _ANSWERS):
            asked = self.client.asked.get(message.id)
            if asked is not None and asked.peer == parcel.sender:
                return self.client.answered(message.id, asked, decoded)
            if self.rounds is not None and self.rounds.answered(parcel.sender, message, decoded):
                return None
        elif isinstance(message, CallCancel):
            for of_layer in calls.values():
                of_layer[:] = [
                    one for one in of_layer if (one.parcel.sender, one.call.id) != (parcel.sender, message.id)
                ]
            if self.server.cancel(parcel.sender, message.id):
                return None
        return self._hand_over(parcel)

    def _serve_later(self, one: CallIn) -> None:
        if self.server.is_plain(one.parcel.sender, one.call, one.decoded):
            self.server.serve(one.parcel, one.call, one.decoded)
        else:
            self._hand_over(one.parcel)

    def _fault(self) -> None:
        """A fault here, met by one parcel, must not end the thread."""
        self.counts["faults"] += 1
        logger.exception("a parcel on the data lane met a fault of this software")

    def _hand_over(self, parcel: Parcel) -> None:
        """To the handlers on trio."""
        with self._lock:
            if self._handed_over >= HANDED_OVER_MAX:
                self.counts["dropped"] += 1
                return
            self._handed_over += 1
            self.counts["handed_over"] += 1
        self._compute.post(self._deliver, parcel)

    def _deliver(self, parcel: Parcel) -> None:
        with self._lock:
            self._handed_over -= 1
        self._messenger.deliver(parcel, Lane.DATA)
