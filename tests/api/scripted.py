"""A service that writes what a test wants, for the protocol's tests; the engine's own are in tests/engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import trio

from meshmoe.engine.request import (
    FinishEvent,
    GenerationEvent,
    GenerationRequest,
    GenerationStats,
    TokenEvent,
    TokenLogprob,
)
from meshmoe.model.bundled import bundled_model_dir
from meshmoe.node.history import HistorySample
from meshmoe.node.leave_progress import LeaveProgress
from meshmoe.node.meters import Meters
from meshmoe.node.status import (
    CoverageStatus,
    CustodyStatus,
    LatencyStatus,
    LinkStatus,
    MigrationEndStatus,
    MigrationStatus,
    ModelStatus,
    NodeStatus,
    PeerStatus,
    ServingStatus,
    TransferStatus,
)

TEXT = "the mesh answers with exactly the text that one big node would have written "


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bundled_model_dir())


class ScriptedService:
    """Repeats TEXT, token by token, for as long as it is asked to."""

    model_name = "edge-12m"
    started_s = 1_700_000_000

    def __init__(self) -> None:
        self.context_tokens = 512
        self.delay_s = 0.0
        self.not_ready: Exception | None = None
        self.refuse: Exception | None = None
        self.fail_after: tuple[int, Exception] | None = None
        self.text = TEXT
        self.finish_reason = "length"
        self.active = 0
        self.active_most = 0
        self.started = 0
        self.requests: list[GenerationRequest] = []
        self.left = False
        self.on_left: Callable[[], None] | None = None
        self.leave_error: Exception | None = None
        self.chat_template: str | None = None
        self.measured = Meters()
        self.samples: list[HistorySample] = []
        self.statuses = 0
        self.faults = {"timeouts": 2, "retries": 0}

    @property
    def tokenizer(self) -> Any:
        if self.not_ready is not None:
            raise self.not_ready
        return tokenizer()

    def require_ready(self) -> None:
        if self.not_ready is not None:
            raise self.not_ready

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[GenerationEvent]]:
        self.requests.append(request)
        if self.refuse is not None:
            raise self.refuse
        self.active += 1
        self.started += 1
        self.active_most = max(self.active_most, self.active)
        try:
            yield _Events(self, request)
        finally:
            self.active -= 1

    @asynccontextmanager
    async def leave(self) -> AsyncIterator[AsyncIterator[LeaveProgress]]:
        async def steps() -> AsyncIterator[LeaveProgress]:
            for remaining in (3, 2, 1, 0):
                await trio.sleep(self.delay_s)
                if self.leave_error is not None and remaining == 1:
                    raise self.leave_error
                yield LeaveProgress(remaining, 3, f"{remaining} experts to hand over")

        yield steps()
        self.left = True
        if self.on_left is not None:
            self.on_left()

    def meters(self) -> Meters:
        return self.measured

    def history(self) -> list[HistorySample]:
        return self.samples

    def status(self) -> NodeStatus:
        self.statuses += 1
        return NodeStatus(
            node="a",
            generation=1,
            software="0.1.0",
            uptime_s=65.0,
            phase="serving",
            rss_bytes=400 << 20,
            model=ModelStatus(
                name=self.model_name,
                digest="0123456789abcdef" * 2 + "01234567",
                family="qwen3_moe",
                dtype="bfloat16",
                moe_layers=2,
                experts=8,
                expert_bytes_total=18 << 20,
                trunk_bytes=4 << 20,
                context_tokens=self.context_tokens,
            ),
            peers=[
                PeerStatus(
                    node="a",
                    state="alive",
                    is_self=True,
                    address="10.0.0.1:7337",
                    capacity_bytes=10 << 20,
                    held_bytes=8 << 20,
                    experts_held=4,
                    software="0.1.0",
                ),
                PeerStatus(
                    node="b-with-a-longer-name",
                    state="suspect",
                    is_self=False,
                    address="10.0.0.2:7337",
                    capacity_bytes=10 << 20,
                    held_bytes=6 << 20,
                    experts_held=3,
                    rtt_ms=1.25,
                    rate_bytes_per_s=62_500_000,
                    sent_bytes=123_456,
                    received_bytes=654_321,
                    expert_calls=777,
                    software="0.1.0",
                ),
            ],
            coverage=CoverageStatus(
                covered=7,
                total=8,
                replicas_mean=1.0,
                missing_bytes=2 << 20,
                holder_map_digest="feedfacefeedface",
                holders_by_layer=[[[0], [0], [1], [1]], [[0], [0], [1], []]],
            ),
            serving=ServingStatus(
                ready=self.not_ready is None,
                reason=str(self.not_ready or ""),
                active=self.active,
                tokens_per_pass=2.5,
                drafted_per_pass=3.75,
                acceptance=0.4,
                latency=LatencyStatus(
                    first_token_ms_p50=12.5, first_token_ms_p99=250.0, token_ms_p50=3.25, token_ms_p99=9.5
                ),
            ),
            transfers=[TransferStatus(what="expert 1/3", source="b", done_bytes=1 << 20, total_bytes=2 << 20)],
            custody=CustodyStatus(experts=5, intakes=1, migrations=2, lost=["1/3"], lost_total=1, given=3, taken=4),
            experts_wanted=4,
            join_command="meshmoe join --peer 10.0.0.1:7337",
            faults=dict(self.faults),
            links=[LinkStatus(nodes=("a", "b-with-a-longer-name"), rtt_ms=1.25, rate_bytes_per_s=62_500_000)],
            migrations=[
                MigrationStatus(
                    expert="1/2",
                    peer="b-with-a-longer-name",
                    direction="taking",
                    state="fetching",
                    done_bytes=1 << 20,
                    total_bytes=4 << 20,
                ),
                MigrationStatus(expert="0/1", peer="b-with-a-longer-name", direction="giving", state="offered"),
            ],
            migrations_ended=[
                MigrationEndStatus(expert="0/3", peer="b-with-a-longer-name", outcome="given", reason="", ago_s=75.0),
                MigrationEndStatus(
                    expert="1/1", peer="b-with-a-longer-name", outcome="kept", reason="no room", ago_s=99.0
                ),
            ],
            loop_late_p99_ms=1.5,
        )


class _Events:
    """What one generation yields."""

    def __init__(self, service: ScriptedService, request: GenerationRequest) -> None:
        self._service = service
        self._sampling = request.sampling
        self._prompt_tokens = len(request.prompt_ids)
        self._ids: list[int] = tokenizer().encode(service.text)
        self._count = 0
        self._finished = False

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> GenerationEvent:
        await trio.sleep(self._service.delay_s)
        fail_after = self._service.fail_after
        if fail_after is not None and self._count >= fail_after[0]:
            raise fail_after[1]
        if self._finished:
            raise StopAsyncIteration
        limit = self._sampling.max_tokens
        assert limit is not None
        if self._count >= limit:
            self._finished = True
            stats = GenerationStats(
                prompt_tokens=self._prompt_tokens,
                completion_tokens=self._count,
                decode_steps=self._count - 1,
                decode_tokens=self._count - 1,
                decode_rounds=2 * (self._count - 1),
                decode_s=0.5,
                prefill_s=0.25,
                expert_calls_local=3,
                expert_calls_remote=1,
                sent_bytes=1000,
            )
            return FinishEvent(reason=self._service.finish_reason, stats=stats)
        token_id = self._ids[self._count % len(self._ids)]
        self._count += 1
        text = tokenizer().decode([token_id])
        if self._sampling.logprobs is None:
            return TokenEvent(token_id=token_id, text=text)
        top = [TokenLogprob(token_id, text, -0.5), TokenLogprob(5, tokenizer().decode([5]), -1.5)]
        return TokenEvent(
            token_id=token_id, text=text, logprob=-0.5, top_logprobs=tuple(top[: self._sampling.logprobs])
        )
