"""Asking on the express: who is asked for what, answers, deadlines, and when a call goes on the usual way.

The plain case only: every expert has a holder, and the holders answer in time. A call of which anything is left over
then goes to `ExpertClient.complete`, which knows about other holders and patience. Every call out has a deadline.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import outcome
import trio
from torch import Tensor

from meshmoe.core.errors import PeerError
from meshmoe.core.ids import NodeId
from meshmoe.engine.compute import ComputeThread
from meshmoe.engine.job import Call, CallAbandonedError, Job, JobCancelled
from meshmoe.engine.remote import LayerCall
from meshmoe.node.call_rows import REPLY_HEADER_BYTES, read_outputs, row_bytes, rows_to_send
from meshmoe.node.expert_client import CallPatience, ExpertClient, MeshKnowledge
from meshmoe.node.express_rounds import ExpressRounds
from meshmoe.node.messenger import Messenger
from meshmoe.node.peer_times import PeerTimes
from meshmoe.node.routes import Choice, Routes
from meshmoe.node.vigil import Vigil
from meshmoe.transport.base import DirectLane
from meshmoe.wire.codec import Codec, Decoded
from meshmoe.wire.messages import CallCancel, ExpertCall, ExpertReply
from meshmoe.wire.tensors import is_of

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Asked:
    """One message to one peer."""

    call: ExpressCall
    peer: NodeId
    experts: list[int]
    sent_s: float
    deadline_s: float


class ExpressCall(Call[dict[int, Tensor]]):
    """A layer's calls on the express; what a job waits for."""

    def __init__(self, job: Job, call: LayerCall, client: ExpressClient, row_bytes: int) -> None:
        super().__init__(job)
        self.asked = call
        self.row_bytes = row_bytes
        """That a row moves, there and back."""
        self.outputs: dict[int, Tensor] = {}
        self.taken: set[int] = set()
        """Experts whose outputs `LayerCall.take` has taken."""
        self.open: set[int] = set()
        """Ids of messages that are not answered."""
        self.late: list[NodeId] = []
        self._client = client
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
        self._client.compute.tell(self._abandon, None)

    def _abandon(self, _: None) -> None:
        if self._outcome is not None:
            return
        if self._usual_way:
            super().abandon()
        else:
            self._client.forget(self)
            self._client.compute.settle(self, outcome.Error(CallAbandonedError()))

    def progress(self) -> None:
        """Once nothing is open: end, or go on the usual way."""
        if self.open or self._usual_way or self._outcome is not None:
            return
        call = self.asked
        if len(self.taken) == len(call.rows):  # which is all of it
            self._client.compute.settle(self, outcome.Value(self.outputs))
            return
        rest = {
            expert: rows
            for expert, rows in call.rows.items()
            if expert not in self.outputs and expert not in self.taken
        }
        if rest:
            self._usual_way = True
            lost_s = perf_counter() - self._began_s
            self._go_on(self._client.usual.complete, call.kept()._replace(rows=rest), self.outputs, self.late, lost_s)
        else:
            self._client.compute.settle(self, outcome.Value(self.outputs))


class ExpressClient:
    """See the module; everything belongs to the compute thread.

    Attributes:
        usual: The usual way.
        compute: The thread.
        asked: Messages that are not answered, by id.
        soonest_s: When the first of their deadlines passes, or earlier; `expire` is to be called then.
        times: How long peers take.
        rounds: The mesh's side of compiled rounds, where there are any.
    """

    def __init__(
        self,
        lane: DirectLane,
        codec: Codec,
        compute: ComputeThread,
        mesh: MeshKnowledge,
        usual: ExpertClient,
        messenger: Messenger,
        vigil: Vigil,
        counts: Counter[str],
    ) -> None:
        """Ask on a lane.

        Args:
            lane: The data lane.
            codec: Of the compute thread.
            compute: The thread.
            mesh: Who holds what, and how far away.
            usual: The usual way; its patience holds here, too.
            messenger: Hears who answers wrongly.
            vigil: Told when answers are due.
            counts: See `Express.counts`.
        """
        self.usual = usual
        self.compute = compute
        self.asked: dict[int, Asked] = {}
        self.soonest_s = float("inf")
        self._lane = lane
        self._codec = codec
        self._messenger = messenger
        self._vigil = vigil
        self._counts = counts
        self._patience: CallPatience = usual.patience
        self.times = PeerTimes()
        self._routes = Routes(mesh, self.times)
        self.rounds: ExpressRounds | None = None
        self._ids = count(2, 4)  # multiples of four are those of compiled rounds
        self._clock = trio.lowlevel.current_clock()

    def send(self, job: Job, call: LayerCall) -> ExpressCall | None:
        """See `Inlet.send`."""
        if self.usual.spot_checks is not None or (self.usual.hedging.enabled and call.decode):
            return None
        now_s = perf_counter()
        self._routes.look(now_s)
        size_bytes = row_bytes(call.hidden) if call.memory is None else call.memory.moved_bytes
        choice = self._routes.choose(call.layer, call.rows, size_bytes)
        if choice is None:
            return None
        under_way = ExpressCall(job, call, self, size_bytes)
        deadline_s = now_s + self._budget_s(call, choice, size_bytes)
        for peer, experts in choice.experts.items():
            self._ask(under_way, peer, experts, now_s, deadline_s)
        self._vigil.expect(now_s, max([self.times.usual_s(peer) for peer in choice.experts]))
        return under_way if under_way.open else None

    def _budget_s(self, call: LayerCall, choice: Choice, size_bytes: int) -> float:
        """As `ExpertClient` has it."""
        budget_s = self._patience.attempt_s if call.decode else self._patience.prefill_attempt_s
        if call.decode and choice.spare:
            budget_s = max([self.times.deadline_s(peer, budget_s) for peer in choice.experts])
        for peer, experts in choice.experts.items():
            rows = 0
            for expert in experts:
                rows += len(call.rows[expert])
            budget_s = max(budget_s, 4 * self._routes.call_time_s(peer, rows * size_bytes))
        return budget_s

    def _ask(self, under_way: ExpressCall, peer: NodeId, experts: list[int], now_s: float, deadline_s: float) -> None:
        call, number = under_way.asked, next(self._ids)
        rows = call.rows if len(experts) == len(call.rows) else {expert: call.rows[expert] for expert in experts}
        frame, wanted = rows_to_send(call.hidden, rows, call.memory)
        budget_ms = max(1, int((deadline_s - now_s) * 1000))
        message = ExpertCall(id=number, layer=call.layer, experts=wanted, budget_ms=budget_ms, decode=call.decode)
        frames = self._codec.encode(message, tensor=frame)
        try:
            self._lane.send(peer, frames)
        except PeerError as error:
            logger.debug("expert call to %s does not go by express: %s", peer, error)
            return
        call.stats.sent_bytes += len(frames[0]) + len(frames[1])
        self.asked[number] = Asked(under_way, peer, experts, now_s, deadline_s)
        self.soonest_s = min(self.soonest_s, deadline_s)
        under_way.open.add(number)
        self._counts["sent"] += 1

    def adopt(self, job: Job, call: LayerCall, at: int, answered: set[int]) -> ExpressCall:
        """See `Inlet.adopt`."""
        assert self.rounds is not None
        size_bytes = row_bytes(call.hidden) if call.memory is None else call.memory.moved_bytes
        under_way = ExpressCall(job, call, self, size_bytes)
        under_way.taken.update(answered)
        sent_bytes, received_bytes = self.rounds.moved_bytes(at)
        call.stats.sent_bytes += sent_bytes
        call.stats.received_bytes += received_bytes
        for number, peer, experts, sent_s, deadline_s in self.rounds.take_over(at):
            self.asked[number] = Asked(under_way, peer, experts, sent_s, deadline_s)
            self.soonest_s = min(self.soonest_s, deadline_s)
            under_way.open.add(number)
        self._counts["adopted"] += 1
        if not under_way.open:
            under_way.progress()
        return under_way

    def give_up(self, at: int) -> None:
        """See `Inlet.give_up`."""
        assert self.rounds is not None
        for group in self.rounds.take_over(at):
            self._cancel_at(group.number, group.peer)

    def answered(self, number: int, asked: Asked, decoded: Decoded) -> None:
        """A peer has answered one of the open messages, whatever it says."""
        del self.asked[number]
        under_way, call = asked.call, asked.call.asked
        under_way.open.discard(number)
        message = decoded.message
        if call.decode:
            took_s = perf_counter() - asked.sent_s
            self.times.answered(asked.peer, took_s)
            self.usual.latency.note(took_s, self._clock.current_time())
        if isinstance(message, ExpertReply):
            counts = [len(call.rows[expert]) for expert in asked.experts]
            try:
                rows = sum(counts)
                if not self._taken(under_way, asked.experts, rows, decoded):
                    parts = read_outputs(decoded, asked.peer, counts, call.hidden)
                    under_way.outputs.update(zip(asked.experts, parts, strict=True))
            except PeerError as error:
                logger.info("expert call to %s: %s", asked.peer, error)
                self.compute.post(self._messenger.blame, asked.peer, "bad_reply", error)
            else:
                self._counts["answered"] += 1
                call.stats.received_bytes += rows * under_way.row_bytes // 2 + REPLY_HEADER_BYTES
                self.usual.calls_by_peer[asked.peer] += rows
        under_way.progress()

    def _taken(self, under_way: ExpressCall, experts: list[int], rows: int, decoded: Decoded) -> bool:
        """Hand outputs to whoever waits, without making tensors of them; False if that is not possible."""
        call, tensor = under_way.asked, decoded.tensor
        if call.take is None or tensor is None:
            return False
        header, memory = tensor.header, call.memory
        if memory is not None:
            expected = header.rows == rows and header.columns == memory.columns and header.dtype == memory.code
        else:
            columns, dtype = call.hidden.shape[1], call.hidden.dtype
            expected = header.rows == rows and header.columns == columns and is_of(header, dtype)
        if not expected or not call.take(experts, tensor.data):
            return False
        under_way.taken.update(experts)
        return True

    def expire(self, now_s: float) -> None:
        """Give up what has not been answered in time."""
        late = [(number, asked) for number, asked in self.asked.items() if asked.deadline_s <= now_s]
        for number, asked in late:
            self.times.missed(asked.peer, now_s)
            self._routes.forget()
            if self.rounds is not None:
                self.rounds.forget()
            asked.call.late.append(asked.peer)
            self._cancel_at(number, asked.peer)
            self._give_up(number)
        self.soonest_s = min((asked.deadline_s for asked in self.asked.values()), default=float("inf"))

    def peer_gone(self, peer: NodeId) -> None:
        """Calls to this peer will not be answered."""
        if self.rounds is not None:
            self.rounds.peer_gone(peer)
        for number in [number for number, asked in self.asked.items() if asked.peer == peer]:
            self._give_up(number)

    def _give_up(self, number: int) -> None:
        under_way = self.asked.pop(number).call
        under_way.open.discard(number)
        under_way.progress()

    def forget(self, under_way: ExpressCall) -> None:
        """Nobody waits for this call any more: cancel it at the peers."""
        for number in under_way.open:
            self._cancel_at(number, self.asked.pop(number).peer)
        under_way.open.clear()

    def _cancel_at(self, number: int, peer: NodeId) -> None:
        with contextlib.suppress(PeerError):  # it will compute in vain, or has gone
            self._lane.send(peer, self._codec.encode(CallCancel(id=number)))
