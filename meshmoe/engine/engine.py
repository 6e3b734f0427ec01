"""The engine as the rest of the node sees it: generate text, compute experts for peers, say how it goes. On trio."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import trio
from torch import Tensor

from meshmoe.core.errors import OverloadedError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.admission import Admission
from meshmoe.engine.checks import check_call, check_request, check_width
from meshmoe.engine.compute import ComputeThread, open_compute
from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.dispatch import compute_rows
from meshmoe.engine.drafts.mode import AUTO, DraftMode
from meshmoe.engine.events import EventStream
from meshmoe.engine.generate import Generation, generate
from meshmoe.engine.grammar import Grammars
from meshmoe.engine.kernels.choice import crew_for
from meshmoe.engine.kv_room import card_kv_cache_bytes, default_kv_cache_bytes
from meshmoe.engine.model import MoeModel
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import LittleCall, RemoteExperts
from meshmoe.engine.request import GenerationEvent, GenerationRequest, GenerationStats
from meshmoe.engine.schedule import Priority
from meshmoe.model.experts_modules import ExpertWeights
from meshmoe.transport.service_nursery import open_service_nursery

if TYPE_CHECKING:
    from meshmoe.engine.lean.batch import LeanEngine
    from meshmoe.engine.lean.resident import ResidentTable
    from meshmoe.engine.lean.scheduler import Scheduler
    from meshmoe.engine.rounds.post import PostOffice

_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine will take on at once.

    Attributes:
        active_max: Requests that generate. Each holds a key-value cache.
        queue_max: Requests that wait for a place.
        peer_calls_max: Expert calls from peers, queued or computed. At 1 ms a call, 256 are a quarter of a second of
            waiting; a peer that is refused asks another holder.
        events_max: Events of a request that its consumer has not taken; at this many the request pauses.
        threads: For one operation, of compiled code or of torch.
        drafts: How tokens are guessed ahead on the lean path.
        kv_cache_bytes: Room for all requests' keys and values on the lean path; None for `default_kv_cache_bytes`.
        stop_timeout_s: How long the compute thread may take to stop.
    """

    active_max: int = 24
    queue_max: int = 64
    peer_calls_max: int = 256
    events_max: int = 32
    threads: int = 1
    drafts: DraftMode = AUTO
    kv_cache_bytes: int | None = None
    stop_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot.

    Attributes:
        active: Requests that generate.
        queued: Requests that wait for a place.
        peer_calls: Expert calls from peers, queued or computed.
        tokens_written: Since the start.
        tokens_per_s: Tokens written a second, of all requests, over the last ten seconds or so.
        busy: Share of that time in which the compute thread computed, 0 to 1.
        cache_bytes: Size of all key-value caches; estimated on the generic path.
        cache_capacity_bytes: Their budget; None on the generic path, which has none.
    """

    active: int
    queued: int
    peer_calls: int
    tokens_written: int
    tokens_per_s: float
    busy: float
    cache_bytes: int
    cache_capacity_bytes: int | None


class Engine:
    """Made by `open_engine`.

    Attributes:
        model: The trunk.
        pool: The experts that are resident here; whoever migrates changes it.
        counts: Which experts the node's own requests chose.
        limits: As given.
        peer_calls_besides: Counts peers' calls that came through an inlet.
    """

    def __init__(
        self,
        model: MoeModel,
        pool: ExpertPool,
        remote: RemoteExperts | None,
        limits: EngineLimits,
        compute: ComputeThread,
        nursery: trio.Nursery,
        counts: ActivationCounts,
        lean: LeanEngine | None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.model = model
        self.pool = pool
        self.limits = limits
        self.counts = counts
        self._clock = clock
        self._lean = lean
        if self._lean is not None:
            self._lean.clock = clock
        self._scheduler = _scheduler(self._lean, compute, nursery, limits.drafts)
        self._remote = remote
        self._compute = compute
        self._admission = Admission(limits.active_max, limits.queue_max)
        self._grammars = Grammars(model)
        self._peer_calls = 0
        self.peer_calls_besides: Callable[[], int] = lambda: 0
        self._running: list[Generation] = []
        self._written_by_ended = 0
        self._samples: deque[tuple[float, int, float]] = deque([(perf_counter(), 0, compute.idle_s)])

    @property
    def compute(self) -> ComputeThread:
        """The thread that computes, for benches of it."""
        return self._compute

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[GenerationEvent]]:
        """Continue a text.

        Use it as ``async with engine.generate(request) as events: async for event in events: ...``. Leaving the block
        early, or being cancelled in it, ends the generation and its calls to peers before the block is left.

        Args:
            request: What to continue, and how. ``max_tokens`` is clipped to what the context has room for.

        Yields:
            An iterator of events; the last is a `FinishEvent`. It raises what stopped the generation, such as an
            `ExpertUnavailableError`.

        Raises:
            RequestError: The request makes no sense for this model; the message has the numbers.
            OverloadedError: Too many requests wait already.
        """
        tokens_max = check_request(request, self.model, self._context_room())
        schema = request.sampling.json_schema
        constraint = None if schema is None else await self._grammars.constraint(schema)
        arrived = perf_counter()
        async with self._admission.place():
            stats = GenerationStats(queue_s=perf_counter() - arrived)
            wake = None if self._scheduler is None else self._scheduler.look
            stream = EventStream(self.limits.events_max, wake)
            generation = Generation(self.model, request, tokens_max, stream, constraint, stats, clock=self._clock)
            failure: Exception | None = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drive, generation, nursery)
                try:
                    yield stream
                except Exception as error:
                    # Carried past the nursery by hand, because a nursery would wrap it into an exception group.
                    failure = error
                nursery.cancel_scope.cancel()
            if failure is not None:
                try:
                    raise failure
                finally:
                    del failure

    async def compute_experts(
        self,
        layer: int,
        rows_by_expert: Sequence[tuple[int, Sequence[int]]],
        hidden: Tensor,
        *,
        decode: bool,
        deadline: float,
    ) -> Tensor:
        """Compute experts for a peer. Goes before all of the node's own work.

        Args:
            layer: MoE layer ordinal.
            rows_by_expert: Experts, each with the rows of ``hidden`` that it computes; no rows means all of them.
            hidden: ``[U, H]`` in the model's dtype, on the CPU.
            decode: Whether someone waits for this very token; at equal arrival these calls go first.
            deadline: ``trio.current_time()`` after which the answer is of no use.

        Returns:
            ``[sum of rows, H]``, the outputs one after the other in the order asked for.

        Raises:
            NotResidentError: It names all experts of the call that are not here; none was computed.
            RequestError: The call does not fit the model.
            OverloadedError: Too many calls wait already, the deadline has passed, or there is no memory left.
        """
        rows, held = self.prepare_call(layer, rows_by_expert, hidden)
        if self._peer_calls >= self.limits.peer_calls_max:
            raise OverloadedError(f"{self._peer_calls} expert calls wait on this node already; ask another holder")
        self._peer_calls += 1
        priority = Priority.PEER_DECODE if decode else Priority.PEER_PREFILL
        try:
            with trio.fail_at(deadline):
                return await self._compute.run(priority, compute_rows, self.model.layers[layer], held, rows, hidden)
        except trio.TooSlowError:
            raise OverloadedError("the expert call's deadline passed before it was computed") from None
        except MemoryError:
            raise OverloadedError("this box has no memory left for an expert call; ask another holder") from None
        finally:
            self._peer_calls -= 1

    def compute_little(self, layer: int, calls: Sequence[LittleCall]) -> list[bytes | None]:
        """On the compute thread: compute peers' calls of few rows for one layer at once, as many of them as are that.

        Returns:
            For each the outputs, as `compute_experts` would have them; None if that has to see to it.
        """
        if self._lean is None or self.model.card is not None:
            return [None] * len(calls)
        if len(calls) == 1:
            return [self._lean.little.serve(layer, calls[0])]
        return self._lean.little.serve_together(layer, calls)

    @property
    def rounds(self) -> tuple[PostOffice, ResidentTable] | None:
        """Where compiled rounds are made, and with which experts; None if this engine makes none."""
        if self._lean is None or self.model.card is not None:
            return None
        return self._lean.office, self._lean.resident

    def prepare_call(
        self, layer: int, rows_by_expert: Sequence[tuple[int, Sequence[int]]], hidden: Tensor
    ) -> tuple[list[list[int]], list[ExpertWeights]]:
        """Check a peer's call and take references to the weights that it needs; on any thread.

        Returns:
            The rows of each expert, spelled out, and each expert's weights.

        Raises:
            NotResidentError: As `compute_experts` does.
            RequestError: The same.
        """
        rows = check_call(layer, rows_by_expert, hidden, self.model)
        held = self.pool.take(ExpertId(layer, index) for index, _ in rows_by_expert)
        check_width(self.model.layers[layer].module, held, hidden)
        return rows, held

    def stats(self) -> EngineStats:
        """How it goes; cheap enough to call every second."""
        now, idle_s = perf_counter(), self._compute.idle_s
        written = self._written_by_ended + sum(g.stats.completion_tokens for g in self._running)
        self._samples.append((now, written, idle_s))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW_S:
            self._samples.popleft()
        since, written_then, idle_then = self._samples[0]
        took_s = max(now - since, 1e-6)
        return EngineStats(
            active=self._admission.active,
            queued=self._admission.queued,
            peer_calls=self._peer_calls + self.peer_calls_besides(),
            tokens_written=written,
            tokens_per_s=(written - written_then) / took_s,
            busy=min(1.0, max(0.0, 1.0 - (idle_s - idle_then) / took_s)),
            cache_bytes=self._cache_bytes(),
            cache_capacity_bytes=None if self._lean is None else self._lean.blocks.capacity_bytes,
        )

    def _cache_bytes(self) -> int:
        if self._lean is not None:
            return self._lean.blocks.used_bytes
        return sum(self.model.cache.bytes_for(g.context_tokens) for g in self._running)

    async def _drive(self, generation: Generation, nursery: trio.Nursery) -> None:
        self._running.append(generation)
        try:
            if self._scheduler is not None:
                await self._scheduler.serve(generation)
            else:
                arguments = (generation, self.pool, self._remote, self.counts)
                await self._compute.run(Priority.PREFILL, generate, *arguments, nursery=nursery)
        except Exception as error:
            generation.stream.fail(error)
        else:
            generation.stream.end()
        finally:
            self._running.remove(generation)
            self._written_by_ended += generation.stats.completion_tokens

    def _context_room(self) -> int:
        """Tokens that a request has room for when it is alone."""
        return self.model.context_length if self._lean is None else self._lean.tokens_max


def _lean_engine(
    model: MoeModel, pool: ExpertPool, remote: RemoteExperts | None, counts: ActivationCounts, limits: EngineLimits
) -> LeanEngine | None:
    if model.lean is None:
        return None
    from meshmoe.engine.lean.batch import LeanEngine  # needs numba, which a model with a lean path has found

    sizes = [layer.n_experts for layer in model.layers]
    asked = limits.kv_cache_bytes
    if model.card is not None:
        from meshmoe.engine.cuda.engine import CudaEngine

        kv_bytes = card_kv_cache_bytes(model, limits.active_max, pool) if asked is None else asked
        return CudaEngine(model.lean, model.card, pool, sizes, remote, counts, kv_bytes)
    kv_bytes = default_kv_cache_bytes(model, limits.active_max) if asked is None else asked
    return LeanEngine(model.lean, pool, sizes, remote, counts, kv_bytes)


def _scheduler(
    lean: LeanEngine | None, compute: ComputeThread, nursery: trio.Nursery, drafts: DraftMode
) -> Scheduler | None:
    if lean is None:
        return None
    from meshmoe.engine.lean.scheduler import Scheduler

    return Scheduler(lean, compute, nursery, drafts)


@asynccontextmanager
async def open_engine(
    model: MoeModel,
    pool: ExpertPool,
    remote: RemoteExperts | None = None,
    limits: EngineLimits | None = None,
    clock: Callable[[], float] = perf_counter,
) -> AsyncIterator[Engine]:
    """Run an engine for as long as the block lasts.

    Args:
        model: From `load_moe_model`; several engines may share it.
        pool: The node's resident experts.
        remote: The mesh; without it a layer whose experts are not all resident fails.
        limits: None for the defaults.
        clock: Seconds by which passes are timed, drafts chosen and requests billed; called on the compute thread, too.
    """
    limits = limits or EngineLimits()
    counts = ActivationCounts.zeros([layer.n_experts for layer in model.layers])
    # For a card, kernels are compiled and memory is taken there: seconds, in which the loop answers peers.
    lean = await trio.to_thread.run_sync(_lean_engine, model, pool, remote, counts, limits)
    async with (
        open_compute(
            threads=limits.threads,
            jobs_max=limits.active_max + limits.peer_calls_max,
            stop_timeout_s=limits.stop_timeout_s,
            around=crew_for(model.dtype, limits.threads),
        ) as compute,
        open_service_nursery() as nursery,
    ):
        yield Engine(model, pool, remote, limits, compute, nursery, counts, lean, clock)
