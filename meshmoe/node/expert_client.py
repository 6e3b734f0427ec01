"""Expert calls to peers: the mesh side of `meshmoe.engine.remote.RemoteExperts`.

For one layer of one step: choose holders for the missing experts as a set, send every message before waiting for any
answer, and collect. What fails (a dead or silent peer, a busy one, one that no longer holds the expert) is asked of
another holder; an expert that nobody holds at the moment is waited for, since a guardian will load it; only when
the request's patience ends does it fail, with an error that names the expert. Outputs do not depend on who computed
them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio
from torch import Tensor

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import ExpertUnavailableError, PeerError, WireError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.engine.remote import LayerCall
from meshmoe.node.call_rows import REPLY_HEADER_BYTES, read_outputs, row_bytes, rows_to_send
from meshmoe.node.calls import CallTable, PendingCall, first_settled
from meshmoe.node.hedging import Hedging
from meshmoe.node.messenger import Messenger
from meshmoe.node.pacing import CallLatency
from meshmoe.node.peer_times import PeerTimes
from meshmoe.node.spot_check import SpotChecks
from meshmoe.placement.holder_choice import choose_holders
from meshmoe.wire.codec import Decoded
from meshmoe.wire.messages import CallCancel, CallFailed, ExpertCall, ExpertMoved, ExpertReply, ExpertRows
from meshmoe.wire.tensors import pack_tensor, unpack_tensor

logger = logging.getLogger(__name__)


class MeshKnowledge(Protocol):
    """What the client needs to know of the mesh."""

    @property
    def version(self) -> int:
        """Grows after every change of holders, of who is reachable, and of what peers tell of their queues."""
        ...

    def holders(self, expert: ExpertId) -> Sequence[NodeId]:
        """Reachable peers that hold ``expert``, this node not among them."""
        ...

    def call_time_s(self, peer: NodeId, payload_bytes: int) -> float:
        """Expected time for ``peer`` to answer a call that moves so many bytes in all."""
        ...

    async def wait_changed(self) -> None:
        """Wait until anything about holders has changed."""
        ...


LocalCompute = Callable[[LayerCall, dict[int, list[int]]], Awaitable[dict[int, Tensor]]]


@dataclass(frozen=True, slots=True)
class CallPatience:
    """How long to wait for what.

    Attributes:
        attempt_s: One holder's answer to a decode call, or four times the expected time if that is more. Well above the
            pause of a busy but healthy box. Where another holder could be asked, what was measured of the peer sets a
            shorter one (`meshmoe.node.peer_times`); calls to a peer that dies fail at once with its connection.
        prefill_attempt_s: The same for a prompt's chunk, which has hundreds of rows to compute.
        total_s: What one request may lose, over all its layers, to calls that had to be asked again and to experts that
            nobody held. Covers the detection of a death plus the repair that follows.
        backoff_s: After every holder has been tried, before they are tried again.
    """

    attempt_s: float = 2.0
    prefill_attempt_s: float = 10.0
    total_s: float = 60.0
    backoff_s: float = 0.1


@dataclass(slots=True)
class _Search:
    """The state of one layer call: what is still missing, and who has disappointed."""

    waiting: dict[int, list[int]]
    outputs: dict[int, Tensor] = field(default_factory=dict)
    avoid: dict[int, set[NodeId]] = field(default_factory=dict)
    hinted: dict[int, set[NodeId]] = field(default_factory=dict)
    last_problem: str = ""


class ExpertClient:
    """Computes experts on peers; see the module's text."""

    def __init__(
        self,
        messenger: Messenger,
        calls: CallTable,
        mesh: MeshKnowledge,
        patience: CallPatience | None = None,
        *,
        hedge: bool = False,
    ) -> None:
        """Make one; ``hedge`` sends late decode calls to a second holder, too (`meshmoe.node.hedging`)."""
        self._messenger = messenger
        self._calls = calls
        self._mesh = mesh
        self.patience = patience or CallPatience()
        self._times = PeerTimes()
        self.hedging = Hedging(enabled=hedge)
        self.latency = CallLatency()
        self.resident: Callable[[ExpertId], bool] = lambda _: False
        self.lost: Callable[[ExpertId], bool] = lambda _: False
        self.compute_here: LocalCompute | None = None
        self.calls_by_peer: Counter[NodeId] = Counter()
        self.spot_checks: SpotChecks | None = None
        for message_type in (ExpertReply, ExpertMoved, CallFailed):
            messenger.on(message_type, lambda parcel, decoded: self._settle(parcel.sender, decoded))

    def _settle(self, sender: NodeId, decoded: Decoded) -> None:
        message = decoded.message
        assert isinstance(message, ExpertReply | ExpertMoved | CallFailed)
        if not self._calls.settle(message.id, sender, decoded):
            self._messenger.faults["late_replies"] += 1

    async def compute(self, call: LayerCall) -> dict[int, Tensor]:
        """Compute every expert of ``call`` somewhere in the mesh.

        Returns:
            For each expert ``[its rows, H]`` in the dtype of ``call.hidden``.

        Raises:
            ExpertUnavailableError: An expert could not be had from anybody in time; the message names it.
        """
        search = _Search(waiting=dict(call.rows))
        began_s = trio.current_time()
        await self._attempt(call, search)
        if not search.waiting:
            return search.outputs
        stats = call.stats
        left_s = self.patience.total_s - stats.stalled_s - (trio.current_time() - began_s)
        with trio.move_on_after(max(0.0, left_s)):
            while search.waiting:
                stats.retries += 1
                await self._attempt(call, search)
        stats.stalled_s += trio.current_time() - began_s
        if not search.waiting:
            return search.outputs
        names = ", ".join(str(ExpertId(call.layer, index)) for index in search.waiting)
        problem = f" (last: {search.last_problem})" if search.last_problem else ""
        raise ExpertUnavailableError(
            f"no reachable node computed expert {names}: this request has waited {stats.stalled_s:.0f} s in all for "
            f"experts{problem}; see `meshmoe status` for what the mesh is missing"
        )

    async def complete(
        self, call: LayerCall, outputs: dict[int, Tensor], late: Sequence[NodeId], lost_s: float
    ) -> dict[int, Tensor]:
        """Compute what the express has left over (`meshmoe.node.express_client`).

        Args:
            call: With what is still missing.
            outputs: What is there already.
            late: Who did not answer in time.
            lost_s: What that has taken.
        """
        call.stats.stalled_s += lost_s
        for peer in late:
            self._messenger.faults["call_timeouts"] += 1
            self._times.missed(peer, trio.current_time())
        call.stats.retries += 1
        return outputs | await self.compute(call)

    async def _attempt(self, call: LayerCall, search: _Search) -> None:
        """One round of asking: everything that has a holder is asked for, at once."""
        arrived = {e: rows for e, rows in search.waiting.items() if self.resident(ExpertId(call.layer, e))}
        if arrived and self.compute_here is not None:  # it was loaded here since the step began
            search.outputs.update(await self.compute_here(call, arrived))
            for expert in arrived:
                del search.waiting[expert]
        holders = {expert: self._candidates(call.layer, expert, search) for expert in search.waiting}
        askable = {expert: candidates for expert, candidates in holders.items() if candidates}
        if not askable:
            if search.waiting:
                await self._await_change(call, search)
            return
        size_bytes = row_bytes(call.hidden)
        chosen = choose_holders(
            {expert: len(search.waiting[expert]) for expert in askable},
            askable,
            lambda peer, rows: self._mesh.call_time_s(peer, rows * size_bytes),
        )
        # Without anybody else to turn to, nothing is gained by giving a peer up early.
        spare = all(len(self._mesh.holders(ExpertId(call.layer, expert))) > 1 for expert in askable)
        await self._ask_all(call, chosen, search, spare)

    def _candidates(self, layer: int, expert: int, search: _Search) -> list[NodeId]:
        known = [*self._mesh.holders(ExpertId(layer, expert)), *search.hinted.get(expert, ())]
        avoid, now_s = search.avoid.get(expert, set()), trio.current_time()
        candidates = sorted({peer for peer in known if peer not in avoid})
        trusted = [peer for peer in candidates if not self._times.distrusted(peer, now_s)]
        return trusted or candidates

    async def _await_change(self, call: LayerCall, search: _Search) -> None:
        """Nobody is left to ask: wait for news of the mesh (or a moment), then everybody is asked again."""
        gone = [expert for expert in (ExpertId(call.layer, index) for index in search.waiting) if self.lost(expert)]
        if gone:
            names = ", ".join(map(str, gone))
            raise ExpertUnavailableError(f"expert {names} is lost: no node of the mesh holds it or has it on disk")
        if not search.last_problem:
            search.last_problem = "no node holds it"
        with trio.move_on_after(self.patience.backoff_s if any(search.avoid.values()) else 1.0):
            await self._mesh.wait_changed()
        search.avoid.clear()

    async def _ask_all(self, call: LayerCall, chosen: dict[NodeId, list[int]], search: _Search, spare: bool) -> None:
        pending: list[tuple[PendingCall, list[int]]] = []
        budget_s = self.patience.attempt_s if call.decode else self.patience.prefill_attempt_s
        if call.decode and spare:
            budget_s = max(self._times.deadline_s(peer, budget_s) for peer in chosen)
        for peer, experts in chosen.items():
            rows = sum(len(search.waiting[e]) for e in experts)
            budget_s = max(budget_s, 4 * self._mesh.call_time_s(peer, rows * row_bytes(call.hidden)))
        try:
            for peer, experts in chosen.items():
                asked = self._ask(peer, experts, call, search, budget_s)
                if asked is not None:
                    pending.append((asked, experts))
            deadline = trio.current_time() + budget_s
            for asked, experts in pending:
                await self._collect(asked, experts, call, search, deadline)
        except trio.Cancelled:
            for asked, _ in pending:
                self._messenger.try_post(asked.peer, Lane.DATA, CallCancel(id=asked.id))
            raise
        finally:
            for asked, _ in pending:
                self._calls.close(asked)

    def _ask(
        self, peer: NodeId, experts: list[int], call: LayerCall, search: _Search, budget_s: float
    ) -> PendingCall | None:
        frame, wanted = rows_to_send(call.hidden, {e: search.waiting[e] for e in experts})
        asked = self._calls.open(peer)
        message = ExpertCall(
            id=asked.id, layer=call.layer, experts=wanted, budget_ms=max(1, int(budget_s * 1000)), decode=call.decode
        )
        try:
            call.stats.sent_bytes += self._messenger.post(peer, Lane.DATA, message, tensor=frame)
        except PeerError as error:
            self._calls.close(asked)
            _disappointed(search, peer, experts, str(error))
            return None
        return asked

    async def _collect(
        self, asked: PendingCall, experts: list[int], call: LayerCall, search: _Search, deadline: float
    ) -> None:
        rival = await self._rival(asked, experts, call, search, deadline)
        racing = [asked] if rival is None else [asked, rival]
        try:
            while racing:
                with trio.move_on_at(deadline) as scope:
                    first = await first_settled(racing)
                if scope.cancelled_caught:
                    for late in racing:
                        self._messenger.faults["call_timeouts"] += 1
                        self._times.missed(late.peer, trio.current_time())
                        _disappointed(search, late.peer, experts, f"{late.peer} did not answer in time")
                    return
                racing.remove(first)
                problem = await self._use(first, experts, call, search)
                if not problem:
                    self.hedging.won += first is rival
                    for slower in racing:  # it would have taken longer still, but so much is known
                        self._times.answered(slower.peer, trio.current_time() - slower.sent_s)
                    return
                logger.info("expert call to %s: %s", first.peer, problem)
                _disappointed(search, first.peer, experts, problem)
        finally:
            for left in racing:
                self._messenger.try_post(left.peer, Lane.DATA, CallCancel(id=left.id))
            if rival is not None:
                self._calls.close(rival)

    async def _use(self, asked: PendingCall, experts: list[int], call: LayerCall, search: _Search) -> str:
        """Use the outcome of a call; returns what was wrong with it, or an empty text."""
        try:
            decoded = await asked.answer()
            if call.decode:
                self._times.answered(asked.peer, asked.answered_s - asked.sent_s)
                self.latency.note(asked.answered_s - asked.sent_s, asked.answered_s)
            return self._take(decoded, asked.peer, experts, call, search)
        except PeerError as error:
            return str(error)

    async def _rival(
        self, asked: PendingCall, experts: list[int], call: LayerCall, search: _Search, deadline: float
    ) -> PendingCall | None:
        """The same question to another holder, if the answer is late, there is one, and the budget allows it."""
        if not self.hedging.enabled or not call.decode:
            return None
        self.hedging.earn()
        late_s = self._times.late_s(asked.peer)
        if late_s is None or asked.has_settled():
            return None
        with trio.move_on_at(min(deadline, asked.sent_s + late_s)):
            await asked.settled()
        if asked.has_settled():
            return None
        having_all = set.intersection(*(set(self._candidates(call.layer, expert, search)) for expert in experts))
        size_bytes = row_bytes(call.hidden)
        others = sorted(having_all - {asked.peer}, key=lambda peer: (self._mesh.call_time_s(peer, size_bytes), peer))
        if not others or trio.current_time() >= deadline or not self.hedging.spend():
            return None
        return self._ask(others[0], experts, call, search, deadline - trio.current_time())

    def _take(self, decoded: Decoded, peer: NodeId, experts: list[int], call: LayerCall, search: _Search) -> str:
        """Use an answer; returns what was wrong with it, or an empty text."""
        message = decoded.message
        if isinstance(message, CallFailed):
            return f"{peer} says {message.reason}{': ' + message.text if message.text else ''}"
        if isinstance(message, ExpertMoved):
            for index, holder in message.lacking:
                if holder is not None and index in search.waiting:
                    search.hinted.setdefault(index, set()).add(NodeId(holder))
            return f"{peer} no longer holds {', '.join(f'{call.layer}/{index}' for index, _ in message.lacking[:4])}"
        counts = [len(search.waiting[e]) for e in experts]
        try:
            parts = read_outputs(decoded, peer, counts, call.hidden)
        except WireError as error:
            self._messenger.blame(peer, "bad_reply", error)
            raise
        call.stats.received_bytes += sum(part.nbytes for part in parts) + REPLY_HEADER_BYTES
        for expert, part in zip(experts, parts, strict=True):
            search.outputs[expert] = part
            if self.spot_checks is not None:
                self._spot_check(self.spot_checks, ExpertId(call.layer, expert), call.hidden, search, part, peer)
            del search.waiting[expert]
        self.calls_by_peer[peer] += sum(counts)
        return ""

    def _spot_check(
        self, checks: SpotChecks, expert: ExpertId, hidden: Tensor, search: _Search, answer: Tensor, peer: NodeId
    ) -> None:
        others = [other for other in self._mesh.holders(expert) if other != peer]
        checks.maybe(expert, hidden[search.waiting[expert.index]], answer, peer, others)

    async def recompute(self, peer: NodeId, expert: ExpertId, rows: Tensor) -> Tensor:
        """Ask one peer for one expert's outputs; the caller bounds the wait.

        Raises:
            PeerError: It does not compute them.
        """
        asked = self._calls.open(peer)
        try:
            message = ExpertCall(id=asked.id, layer=expert.layer, experts=[ExpertRows(expert.index)], budget_ms=10_000)
            self._messenger.post(peer, Lane.DATA, message, tensor=pack_tensor(rows.contiguous()))
            decoded = await asked.answer()
            if decoded.tensor is None:
                raise PeerError(f"{peer} computed nothing")
            return unpack_tensor(decoded.tensor)
        finally:
            self._calls.close(asked)


def _disappointed(search: _Search, peer: NodeId, experts: list[int], problem: str) -> None:
    search.last_problem = problem
    for expert in experts:
        if expert in search.waiting:
            search.avoid.setdefault(expert, set()).add(peer)
            search.hinted.get(expert, set()).discard(peer)
