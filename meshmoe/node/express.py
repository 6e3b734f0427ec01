"""Expert calls that never leave the compute thread: sent, received, computed and answered by it.

On the usual way (`meshmoe.node.expert_client`, `meshmoe.node.expert_server`) an expert call changes threads four times
besides libzmq's own: compute thread to trio and back, at both ends. Each change costs 50 to 100 us, the call itself 30.
Here the compute thread serves the data lane itself: between two slices it looks what has come, and with nothing to do
it waits there.

The express takes the plain case only: every expert has a holder, and the holders answer in time. Whatever else happens
goes the usual way, which knows about other holders, patience, hints, and what to tell a peer that is wrong: calls out
that failed (`ExpertClient.complete`), calls in for experts that are not here or that are not valid
(`Messenger.deliver`), and every other message of the lane.

Invariants: an id is even here and odd there, so that an answer finds its asker. Every call out has a deadline, every
wait a bound. Only so many calls are served, and only so many parcels on their way to trio, at once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import outcome
import trio
from torch import Tensor

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import MeshmoeError, PeerError, WireError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.engine.compute import Call, CallAbandonedError, ComputeThread, Job, JobCancelled
from meshmoe.engine.dispatch import compute_rows
from meshmoe.engine.engine import Engine
from meshmoe.engine.remote import LayerCall
from meshmoe.engine.schedule import Priority
from meshmoe.node.call_room import CallRoom
from meshmoe.node.call_rows import REPLY_HEADER_BYTES, distinct_rows, read_outputs, row_bytes
from meshmoe.node.expert_client import CallPatience, ExpertClient, MeshKnowledge
from meshmoe.node.expert_server import ExpertServer
from meshmoe.node.messenger import Messenger
from meshmoe.node.peer_times import PeerTimes
from meshmoe.placement.holder_choice import choose_holders
from meshmoe.transport.base import DirectLane, Parcel, QueueFullError
from meshmoe.wire.codec import CODEC, Codec, Decoded
from meshmoe.wire.frames import Frame
from meshmoe.wire.messages import CallCancel, CallFailed, ExpertCall, ExpertMoved, ExpertReply
from meshmoe.wire.tensors import is_of, pack_rows, pack_tensor, unpack_tensor

logger = logging.getLogger(__name__)

WAIT_S_MAX = 1.0
PARCELS_A_POLL = 16
"""Parcels taken in before the thread goes on computing: some 20 us each, or 100 with little calls that are served."""
CALLS_MAX = 256
"""Peers' calls, queued or computed."""
HANDED_OVER_MAX = 256
"""Parcels on their way to trio; more are dropped, as a network would, until it has caught up."""


@dataclass(slots=True)
class _Asked:
    """One message to one peer."""

    call: ExpressCall
    peer: NodeId
    experts: list[int]
    sent_s: float
    deadline_s: float


class ExpressCall(Call[dict[int, Tensor]]):
    """A layer's calls on the express; what a job waits for."""

    def __init__(self, job: Job, call: LayerCall, express: Express) -> None:
        super().__init__(job)
        self.asked = call
        self.outputs: dict[int, Tensor] = {}
        self.taken: set[int] = set()
        """Experts whose outputs `LayerCall.take` has taken."""
        self.open: set[int] = set()
        """Ids of messages that are not answered."""
        self.late: list[NodeId] = []
        self._express = express
        self._began_s = perf_counter()
        self._usual_way = False

    def wait(self) -> dict[int, Tensor]:
        """See `Call.wait`."""
        try:
            return super().wait()
        except JobCancelled:
            self._abandon(None)
            raise

    def abandon(self) -> None:
        """See `Call.abandon`."""
        self._express.compute.tell(self._abandon, None)

    def _abandon(self, _: None) -> None:
        if self._outcome is not None:
            return
        if self._usual_way:
            super().abandon()
        else:
            self._express.forget(self)
            self._express.compute.settle(self, outcome.Error(CallAbandonedError()))

    def progress(self) -> None:
        """Once nothing is open: end, or go on the usual way."""
        if self.open or self._usual_way or self._outcome is not None:
            return
        call = self.asked
        rest = {
            expert: rows
            for expert, rows in call.rows.items()
            if expert not in self.outputs and expert not in self.taken
        }
        if rest:
            self._usual_way = True
            lost_s = perf_counter() - self._began_s
            self._go_on(self._express.client.complete, call.kept()._replace(rows=rest), self.outputs, self.late, lost_s)
        else:
            self._express.compute.settle(self, outcome.Value(self.outputs))


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
    ) -> None:
        self.client = client
        self.compute: ComputeThread = engine.compute
        self._lane = lane
        self._engine = engine
        self._mesh = mesh
        self._server = server
        self._messenger = messenger
        self._patience: CallPatience = client.patience
        self._times = PeerTimes()
        self._codec = Codec(CODEC.message_types)
        self._ids = count(2, 2)
        self._asked: dict[int, _Asked] = {}
        self._soonest_s = float("inf")
        self._serving: dict[tuple[NodeId, int], Job] = {}
        self._room = CallRoom(CALLS_MAX)
        self._clock = trio.lowlevel.current_clock()
        self._handed_over = 0
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        """Messages out and answered, calls of peers served, parcels handed over and dropped."""

    # -- Inlet -------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """See `Inlet.poll`."""
        for _ in range(PARCELS_A_POLL):
            try:
                parcel = self._lane.receive()
                if parcel is None:
                    break
                self._take(parcel)
            except Exception:  # a fault here, met by one parcel, must not end the thread
                self.counts["faults"] += 1
                logger.exception("a parcel on the data lane met a fault of this software")
        if self._asked and perf_counter() >= self._soonest_s:
            self._expire(perf_counter())

    def wait(self) -> None:
        """See `Inlet.wait`."""
        self._lane.wait(min(WAIT_S_MAX, max(0.0, self._soonest_s - perf_counter())) if self._asked else WAIT_S_MAX)

    def wake(self) -> None:
        """See `Inlet.wake`. On any thread."""
        self._lane.wake()

    def send(self, job: Job, call: LayerCall) -> ExpressCall | None:
        """See `Inlet.send`."""
        if self.client.spot_checks is not None or (self.client.hedging.enabled and call.decode):
            return None
        chosen = self._choose(call)
        if chosen is None:
            return None
        under_way = ExpressCall(job, call, self)
        now_s = perf_counter()
        deadline_s = now_s + self._budget_s(call, chosen)
        for peer, experts in chosen.items():
            self._ask(under_way, peer, experts, now_s, deadline_s)
        return under_way if under_way.open else None

    # -- from other threads ------------------------------------------------------------------------------------

    def peer_gone(self, peer: NodeId) -> None:
        """On the trio thread: calls to this peer will not be answered."""
        self.compute.tell(self._peer_gone, peer)

    def serving(self) -> int:
        """Peers' calls, queued or computed; on any thread."""
        return len(self._serving)

    # -- calls out ---------------------------------------------------------------------------------------------

    def _choose(self, call: LayerCall) -> dict[NodeId, list[int]] | None:
        """Who is asked for what; None where some expert has nobody, or has come here meanwhile."""
        now_s = perf_counter()
        holders: dict[int, Sequence[NodeId]] = {}
        for expert in call.rows:
            name = ExpertId(call.layer, expert)
            known = self._mesh.holders(name)
            if not known or self.client.resident(name):
                return None
            if len(known) > 1:
                known = [peer for peer in known if not self._times.distrusted(peer, now_s)] or known
            holders[expert] = known
        only = {peer for known in holders.values() for peer in known}
        if len(only) == 1:  # nothing to choose
            return {only.pop(): sorted(holders)}
        size_bytes = row_bytes(call.hidden)
        return choose_holders(
            {expert: len(rows) for expert, rows in call.rows.items()},
            holders,
            lambda peer, rows: self._mesh.call_time_s(peer, rows * size_bytes),
        )

    def _budget_s(self, call: LayerCall, chosen: dict[NodeId, list[int]]) -> float:
        """As `ExpertClient` has it."""
        budget_s = self._patience.attempt_s if call.decode else self._patience.prefill_attempt_s
        if call.decode and all(len(self._mesh.holders(ExpertId(call.layer, expert))) > 1 for expert in call.rows):
            budget_s = max(self._times.deadline_s(peer, budget_s) for peer in chosen)
        size_bytes = row_bytes(call.hidden)
        for peer, experts in chosen.items():
            rows = sum(len(call.rows[expert]) for expert in experts)
            budget_s = max(budget_s, 4 * self._mesh.call_time_s(peer, rows * size_bytes))
        return budget_s

    def _ask(self, under_way: ExpressCall, peer: NodeId, experts: list[int], now_s: float, deadline_s: float) -> None:
        call, number = under_way.asked, next(self._ids)
        hidden, wanted = distinct_rows(call.hidden, {expert: call.rows[expert] for expert in experts})
        budget_ms = max(1, int((deadline_s - now_s) * 1000))
        message = ExpertCall(id=number, layer=call.layer, experts=wanted, budget_ms=budget_ms, decode=call.decode)
        frames = self._codec.encode(message, tensor=pack_tensor(hidden))
        try:
            self._lane.send(peer, frames)
        except PeerError as error:
            logger.debug("expert call to %s does not go by express: %s", peer, error)
            return
        call.stats.sent_bytes += sum(len(frame) for frame in frames)
        self._asked[number] = _Asked(under_way, peer, experts, now_s, deadline_s)
        self._soonest_s = min(self._soonest_s, deadline_s)
        under_way.open.add(number)
        self.counts["sent"] += 1

    def _answered(self, number: int, asked: _Asked, decoded: Decoded) -> None:
        del self._asked[number]
        under_way, call = asked.call, asked.call.asked
        under_way.open.discard(number)
        message = decoded.message
        if call.decode:
            took_s = perf_counter() - asked.sent_s
            self._times.answered(asked.peer, took_s)
            self.client.latency.note(took_s, self._clock.current_time())
        if isinstance(message, ExpertReply):
            counts = [len(call.rows[expert]) for expert in asked.experts]
            try:
                if not self._taken(under_way, asked.experts, sum(counts), decoded):
                    parts = read_outputs(decoded, asked.peer, counts, call.hidden)
                    under_way.outputs.update(zip(asked.experts, parts, strict=True))
            except PeerError as error:
                logger.info("expert call to %s: %s", asked.peer, error)
                self.compute.post(self._messenger.blame, asked.peer, "bad_reply", error)
            else:
                self.counts["answered"] += 1
                call.stats.received_bytes += sum(counts) * row_bytes(call.hidden) // 2 + REPLY_HEADER_BYTES
                self.client.calls_by_peer[asked.peer] += sum(counts)
        under_way.progress()

    def _taken(self, under_way: ExpressCall, experts: list[int], rows: int, decoded: Decoded) -> bool:
        """Hand outputs to whoever waits, without making tensors of them; False if that is not possible."""
        call, tensor = under_way.asked, decoded.tensor
        if call.take is None or tensor is None:
            return False
        header = tensor.header
        expected = header.rows == rows and header.columns == call.hidden.shape[1] and is_of(header, call.hidden.dtype)
        if not expected or not call.take(experts, tensor.data):
            return False
        under_way.taken.update(experts)
        return True

    def _expire(self, now_s: float) -> None:
        late = [(number, asked) for number, asked in self._asked.items() if asked.deadline_s <= now_s]
        for number, asked in late:
            self._times.missed(asked.peer, now_s)
            asked.call.late.append(asked.peer)
            self._cancel_at(number, asked.peer)
            self._give_up(number)
        self._soonest_s = min((asked.deadline_s for asked in self._asked.values()), default=float("inf"))

    def _peer_gone(self, peer: NodeId) -> None:
        for number in [number for number, asked in self._asked.items() if asked.peer == peer]:
            self._give_up(number)

    def _give_up(self, number: int) -> None:
        under_way = self._asked.pop(number).call
        under_way.open.discard(number)
        under_way.progress()

    def forget(self, under_way: ExpressCall) -> None:
        """Nobody waits for this call any more: cancel it at the peers."""
        for number in under_way.open:
            self._cancel_at(number, self._asked.pop(number).peer)
        under_way.open.clear()

    def _cancel_at(self, number: int, peer: NodeId) -> None:
        with contextlib.suppress(PeerError):  # it will compute in vain, or has gone
            self._lane.send(peer, self._codec.encode(CallCancel(id=number)))

    # -- what comes in -----------------------------------------------------------------------------------------

    def _take(self, parcel: Parcel) -> None:
        if self._messenger.offences.is_banned(parcel.sender, self._clock.current_time()):
            return None
        try:
            decoded = self._codec.decode(parcel.frames)
        except WireError:
            return self._hand_over(parcel)
        message = decoded.message
        if isinstance(message, ExpertReply | ExpertMoved | CallFailed):
            asked = self._asked.get(message.id)
            if asked is not None and asked.peer == parcel.sender:
                return self._answered(message.id, asked, decoded)
        elif isinstance(message, CallCancel):
            job = self._serving.get((parcel.sender, message.id))
            if job is not None:
                return self.compute.cancel(job)
        elif isinstance(message, ExpertCall):
            if message.decode and self._serve_at_once(parcel.sender, message, decoded):
                return None
            if self._is_plain(parcel.sender, message, decoded):
                return self._serve(parcel, message, decoded)
        return self._hand_over(parcel)

    def _hand_over(self, parcel: Parcel) -> None:
        """To the handlers on trio."""
        with self._lock:
            if self._handed_over >= HANDED_OVER_MAX:
                self.counts["dropped"] += 1
                return
            self._handed_over += 1
            self.counts["handed_over"] += 1
        self.compute.post(self._deliver, parcel)

    def _deliver(self, parcel: Parcel) -> None:
        with self._lock:
            self._handed_over -= 1
        self._messenger.deliver(parcel, Lane.DATA)

    # -- peers' calls ------------------------------------------------------------------------------------------

    def _serve_at_once(self, peer: NodeId, call: ExpertCall, decoded: Decoded) -> bool:
        """Compute and answer a decode call of few rows without a job of its own; returns whether it was one.

        Nothing is more urgent, and what takes less than a slice needs no place to stop at.
        """
        began_s = perf_counter()
        if decoded.tensor is None or not is_of(decoded.tensor.header, self._engine.model.dtype):
            return False
        (header, data), asked = decoded.tensor, [(wanted.index, wanted.rows) for wanted in call.experts]
        outputs = self._engine.compute_little(call.layer, asked, header.rows, data)
        if outputs is None:
            return False
        rows = sum(len(numbers) or header.rows for _, numbers in asked)
        self._server.rows_served += rows
        self.counts["served"] += 1
        reply = ExpertReply(id=call.id, compute_us=int((perf_counter() - began_s) * 1e6))
        frame = pack_rows(self._engine.model.dtype, rows, outputs)
        self._reply(peer, self._codec.encode(reply, tensor=frame))
        return True

    def _is_plain(self, peer: NodeId, call: ExpertCall, decoded: Decoded) -> bool:
        pool = self._engine.pool
        return (
            decoded.tensor is not None
            and (peer, call.id) not in self._serving
            and all(ExpertId(call.layer, wanted.index) in pool for wanted in call.experts)
            and self._room.enter(peer, decoded.tensor.header.size_bytes)
        )

    def _serve(self, parcel: Parcel, call: ExpertCall, decoded: Decoded) -> None:
        key, began_s = (parcel.sender, call.id), perf_counter()
        size_bytes = decoded.tensor.header.size_bytes if decoded.tensor is not None else 0

        def ended(job: Job) -> None:
            del self._serving[key]
            self._room.leave(parcel.sender, size_bytes)
            if isinstance(job.outcome, outcome.Error):
                logger.debug("expert call from %s goes the usual way: %s", parcel.sender, job.outcome.error)
                self._hand_over(parcel)

        priority = Priority.PEER_DECODE if call.decode else Priority.PEER_PREFILL
        self._serving[key] = self.compute.begin(
            priority, self._compute, parcel.sender, call, decoded, began_s, ended=ended
        )

    def _compute(self, job: Job, peer: NodeId, call: ExpertCall, decoded: Decoded, began_s: float) -> None:
        """Compute and answer; what it raises is dealt with the usual way."""
        if perf_counter() - began_s > call.budget_ms / 1000:
            return self._reply(peer, self._codec.encode(CallFailed(id=call.id, reason="busy")))
        assert decoded.tensor is not None
        hidden = unpack_tensor(decoded.tensor)
        asked = [(wanted.index, wanted.rows) for wanted in call.experts]
        rows, held = self._engine.prepare_call(call.layer, asked, hidden)
        outputs = compute_rows(job, self._engine.model.layers[call.layer], held, rows, hidden)
        took_us = int((perf_counter() - began_s) * 1e6)
        reply = ExpertReply(id=call.id, compute_us=took_us)
        self._server.rows_served += outputs.shape[0]
        self.counts["served"] += 1
        return self._reply(peer, self._codec.encode(reply, tensor=pack_tensor(outputs)))

    def _reply(self, peer: NodeId, frames: Sequence[Frame]) -> None:
        try:
            self._lane.send(peer, frames)
        except QueueFullError:
            self.compute.post(self._server.send_later, peer, frames)
        except MeshmoeError as error:
            logger.info("answer to %s: %s", peer, error)
