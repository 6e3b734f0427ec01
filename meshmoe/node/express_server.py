"""Serving peers on the express: decode calls of few rows at once, others as jobs of the compute thread.

Decode calls of one layer that have come between two looks, of whatever peers, are computed together.

Calls for experts that are not here or that are not valid go the usual way (`meshmoe.node.expert_server`), which knows
what to tell a peer; so does a call whose computation fails. Only so many calls are served at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

import outcome

from meshmoe.core.errors import MeshmoeError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.engine.compute import ComputeThread
from meshmoe.engine.dispatch import compute_rows
from meshmoe.engine.engine import Engine
from meshmoe.engine.job import Job
from meshmoe.engine.remote import LittleCall
from meshmoe.engine.schedule import Priority
from meshmoe.node.call_room import CallRoom
from meshmoe.node.expert_server import ExpertServer
from meshmoe.node.vigil import Vigil
from meshmoe.transport.base import DirectLane, Parcel, QueueFullError
from meshmoe.wire.codec import Codec, Decoded
from meshmoe.wire.frames import Frame
from meshmoe.wire.messages import CallFailed, ExpertCall, ExpertReply
from meshmoe.wire.tensors import is_of, pack_rows, pack_tensor, unpack_tensor

logger = logging.getLogger(__name__)

CALLS_MAX = 256
"""Peers' calls, queued or computed."""


class CallIn(NamedTuple):
    """A peer's call as it came."""

    parcel: Parcel
    call: ExpertCall
    decoded: Decoded


class ExpressServer:
    """See the module; everything belongs to the compute thread unless said otherwise."""

    def __init__(
        self,
        lane: DirectLane,
        codec: Codec,
        engine: Engine,
        usual: ExpertServer,
        hand_over: Callable[[Parcel], None],
        vigil: Vigil,
        counts: Counter[str],
    ) -> None:
        """Serve on a lane.

        Args:
            lane: The data lane.
            codec: Of the compute thread.
            engine: Whose experts and thread compute.
            usual: The usual way; counts rows, and sends answers for which there is no room in the lane yet.
            hand_over: Takes a parcel to it.
            vigil: Told when the next call may be due.
            counts: See `Express.counts`.
        """
        self._lane = lane
        self._codec = codec
        self._engine = engine
        self._compute_thread: ComputeThread = engine.compute
        self._usual = usual
        self._hand_over = hand_over
        self._vigil = vigil
        self._served_s = 0.0
        self._counts = counts
        self._jobs: dict[tuple[NodeId, int], Job] = {}
        self._room = CallRoom(CALLS_MAX)

    def serving(self) -> int:
        """Peers' calls, queued or computed; on any thread."""
        return len(self._jobs)

    def cancel(self, peer: NodeId, number: int) -> bool:
        """Let a peer's call unwind; returns whether it is one of those here."""
        job = self._jobs.get((peer, number))
        if job is None:
            return False
        self._compute_thread.cancel(job)
        return True

    def serve_at_once(self, layer: int, calls: Sequence[CallIn]) -> list[CallIn]:
        """Compute and answer decode calls of few rows for one layer, together and without jobs of their own.

        Nothing is more urgent, and what takes less than a slice needs no place to stop at.

        Returns:
            Those that are not of that kind.
        """
        began_s, dtype = perf_counter(), self._engine.model.dtype
        little: list[tuple[CallIn, LittleCall]] = []
        left: list[CallIn] = []
        for one in calls:
            tensor = one.decoded.tensor
            if tensor is None or not is_of(tensor.header, dtype):
                left.append(one)
                continue
            asked = [(wanted.index, wanted.rows) for wanted in one.call.experts]
            little.append((one, LittleCall(asked, tensor.header.rows, tensor.data)))
        computed = self._engine.compute_little(layer, [call for _, call in little]) if little else []
        if len(little) > 1:
            self._counts["together"] += len(little)
        compute_us = int((perf_counter() - began_s) * 1e6)
        for (one, call), outputs in zip(little, computed, strict=True):
            if outputs is None:
                left.append(one)
                continue
            rows = sum(len(numbers) or call.rows for _, numbers in call.experts)
            self._usual.rows_served += rows
            self._counts["served"] += 1
            reply = ExpertReply(id=one.call.id, compute_us=compute_us)
            self._reply(one.parcel.sender, self._codec.encode(reply, tensor=pack_rows(dtype, rows, outputs)))
        if little:  # a peer that writes asks again about as soon as it did
            since_s, self._served_s = began_s - self._served_s, began_s
            self._vigil.expect(began_s, 2 * since_s)
        return left

    def is_plain(self, peer: NodeId, call: ExpertCall, decoded: Decoded) -> bool:
        """Whether a call is one to `serve`: new, for resident experts, and there is room, which it takes."""
        pool = self._engine.pool
        return (
            decoded.tensor is not None
            and (peer, call.id) not in self._jobs
            and all(ExpertId(call.layer, wanted.index) in pool for wanted in call.experts)
            and self._room.enter(peer, decoded.tensor.header.size_bytes)
        )

    def serve(self, parcel: Parcel, call: ExpertCall, decoded: Decoded) -> None:
        """Queue a plain call; whatever its failure, it then goes the usual way."""
        key, began_s = (parcel.sender, call.id), perf_counter()
        size_bytes = decoded.tensor.header.size_bytes if decoded.tensor is not None else 0

        def ended(job: Job) -> None:
            del self._jobs[key]
            self._room.leave(parcel.sender, size_bytes)
            if isinstance(job.outcome, outcome.Error):
                logger.debug("expert call from %s goes the usual way: %s", parcel.sender, job.outcome.error)
                self._hand_over(parcel)

        priority = Priority.PEER_DECODE if call.decode else Priority.PEER_PREFILL
        self._jobs[key] = self._compute_thread.begin(
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
        self._usual.rows_served += outputs.shape[0]
        self._counts["served"] += 1
        return self._reply(peer, self._codec.encode(reply, tensor=pack_tensor(outputs)))

    def _reply(self, peer: NodeId, frames: Sequence[Frame]) -> None:
        try:
            self._lane.send(peer, frames)
        except QueueFullError:
            self._compute_thread.post(self._usual.send_later, peer, frames)
        except MeshmoeError as error:
            logger.info("answer to %s: %s", peer, error)
