"""This node's own requests: passes them to the engine and keeps the figures that the status shows."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter

import trio

from meshmoe.core.errors import MeshmoeError
from meshmoe.engine.engine import Engine
from meshmoe.engine.request import FinishEvent, GenerationEvent, GenerationRequest, GenerationStats
from meshmoe.node.expert_client import ExpertClient
from meshmoe.node.history import SAMPLE_INTERVAL_S, History
from meshmoe.node.meters import Meters
from meshmoe.node.pacing import CallTimes
from meshmoe.node.status import LatencyStatus, ServingStatus
from meshmoe.placement.live.drafts import DraftsSeen

_RECENT = 64
"""Finished requests that the rates are taken over."""

CALLS_RECENT_S = 10.0
"""Over which the status tells what expert calls took."""


class Serving:
    """Counts requests by how they ended, and sums what they took."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.finished = 0
        self.failed = 0
        self.cancelled = 0
        self.completion_tokens = 0
        self.meters = Meters()
        self.history = History()
        self._recent: deque[GenerationStats] = deque(maxlen=_RECENT)
        self._open = 0
        self._idle = trio.Event()
        self._idle.set()

    @asynccontextmanager
    async def generate(
        self, request: GenerationRequest, require_ready: Callable[[], None]
    ) -> AsyncIterator[AsyncIterator[GenerationEvent]]:
        """Run a generation; see `Engine.generate`.

        Args:
            request: What to continue.
            require_ready: Raises what stands against serving now.
        """
        arrived_s = perf_counter()
        require_ready()
        assert self.engine is not None
        outcome = "cancelled"
        if not self._open:
            self._idle = trio.Event()
        self._open += 1
        try:
            async with self.engine.generate(request) as events:

                async def watched() -> AsyncIterator[GenerationEvent]:
                    nonlocal outcome
                    meter, since_s = self.meters.first_token, arrived_s
                    async for event in events:
                        if isinstance(event, FinishEvent):
                            outcome = "finished"
                            self._recent.append(event.stats)
                            self.completion_tokens += event.stats.completion_tokens
                            self.meters.add(event.stats)
                        else:
                            now_s = perf_counter()
                            meter.observe(now_s - since_s)
                            meter, since_s = self.meters.between_tokens, now_s
                        yield event

                yield watched()
        except MeshmoeError:
            outcome = "failed"
            raise
        finally:
            setattr(self, outcome, getattr(self, outcome) + 1)
            self._open -= 1
            if not self._open:
                self._idle.set()

    def status(self, ready: bool, reason: str, calls_served: int, client: ExpertClient | None) -> ServingStatus:
        """The figures now."""
        recent = list(self._recent)
        calls = sum(s.expert_calls_local + s.expert_calls_remote for s in recent)
        told = sum(s.decode_tokens for s in recent)
        drafted = sum(s.drafted_tokens for s in recent)
        passes = sum(s.decode_steps for s in recent)
        busy_s = sum(s.prefill_s + s.decode_s for s in recent)
        stats = self.engine.stats() if self.engine is not None else None
        begin_s = trio.current_time() - CALLS_RECENT_S
        times = client.latency.since(begin_s) if client is not None else CallTimes(0, 0.0, 0.0)
        return ServingStatus(
            ready=ready,
            reason=reason,
            active=stats.active if stats else 0,
            queued=stats.queued if stats else 0,
            finished=self.finished,
            failed=self.failed,
            cancelled=self.cancelled,
            completion_tokens=self.completion_tokens,
            tokens_per_s=sum(s.completion_tokens for s in recent) / busy_s if busy_s > 0 else 0.0,
            hit_ratio=sum(s.expert_calls_local for s in recent) / calls if calls else None,
            rounds_per_token=sum(s.decode_rounds for s in recent) / told if told else None,
            tokens_per_pass=told / passes if passes else None,
            drafted_per_pass=drafted / passes if passes else None,
            acceptance=sum(s.accepted_tokens for s in recent) / drafted if drafted else None,
            expert_calls_served=calls_served,
            calls_recent=times.calls,
            call_p50_ms=round(1000 * times.p50_s, 3),
            call_p99_ms=round(1000 * times.p99_s, 3),
            hedges=client.hedging.calls if client is not None else 0,
            hedges_won=client.hedging.won if client is not None else 0,
            tokens_per_s_now=round(stats.tokens_per_s, 3) if stats else 0.0,
            busy=round(stats.busy, 3) if stats else 0.0,
            latency=self._latency(),
        )

    def drafts_seen(self) -> DraftsSeen | None:
        """What the latest requests tell of their passes; None before the first that decoded."""
        recent = [s for s in self._recent if s.decode_steps]
        calls = sum(s.expert_calls_local + s.expert_calls_remote for s in recent)
        if not calls:
            return None
        return DraftsSeen(
            passes=sum(s.decode_steps for s in recent),
            tokens=sum(s.decode_tokens for s in recent),
            drafted=sum(s.drafted_tokens for s in recent),
            depth=sum(s.drafted_depth for s in recent),
            looked_up=sum(s.looked_up_depth for s in recent),
            decode_s=sum(s.decode_s for s in recent),
            hit=sum(s.expert_calls_local for s in recent) / calls,
        )

    def _latency(self) -> LatencyStatus:
        first = self.meters.first_token.percentiles_s(0.5, 0.99)
        between = self.meters.between_tokens.percentiles_s(0.5, 0.99)
        return LatencyStatus(
            **{
                f"{name}_p{share}": None if seconds is None else round(seconds * 1000, 3)
                for name, pair in (("first_token_ms", first), ("token_ms", between))
                for share, seconds in zip((50, 99), pair, strict=True)
            }
        )

    async def keep_history(self) -> None:
        """Take samples until cancelled."""
        while True:
            await trio.sleep(SAMPLE_INTERVAL_S)
            written = self.engine.stats().tokens_written if self.engine is not None else 0
            self.history.sample(self.meters.totals, written)

    async def drain(self, timeout_s: float) -> None:
        """Wait until no request of this node is active, or time is up."""
        with trio.move_on_after(timeout_s):
            await self._idle.wait()
