"""A node of one: the real engine with all experts of the bundled model, as the API sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from meshmoe.api.service import LeaveProgress
from meshmoe.engine.engine import Engine, open_engine
from meshmoe.engine.request import GenerationEvent, GenerationRequest
from meshmoe.node.status import NodeStatus
from tests.api.scripted import ScriptedService
from tests.engine.support import edge, edge_pool


class EngineService:
    model_name = "edge-12m"
    started_s = 1_700_000_000

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def tokenizer(self) -> Any:
        return self.engine.model.tokenizer

    @property
    def context_tokens(self) -> int:
        return self.engine.model.context_length

    def require_ready(self) -> None:
        pass

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[GenerationEvent]]:
        return self.engine.generate(request)

    def status(self) -> NodeStatus:
        return ScriptedService().status()

    def leave(self) -> AbstractAsyncContextManager[AsyncIterator[LeaveProgress]]:
        return ScriptedService().leave()


@asynccontextmanager
async def engine_service() -> AsyncIterator[EngineService]:
    _, model = edge()
    async with open_engine(model, edge_pool()) as engine:
        yield EngineService(engine)
