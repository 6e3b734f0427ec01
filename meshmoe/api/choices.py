"""The generations of one request, run side by side, their events in one queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from meshmoe.api.service import ModelService
from meshmoe.engine.request import GenerationEvent, GenerationRequest

GENERATIONS_AT_ONCE_MAX = 8
"""Of one request; the rest of its choices wait here, so that one request does not fill the engine's queue."""

EVENTS_WAITING_MAX = 64
"""Events between the engine and a client that reads slowly; then that request, and only that one, waits for it."""


class ChoiceEvent(NamedTuple):
    """Something happened to a choice, which is known by its number."""

    choice: int
    event: GenerationEvent


@asynccontextmanager
async def run_choices(
    service: ModelService, generations: Sequence[GenerationRequest]
) -> AsyncIterator[trio.MemoryReceiveChannel[ChoiceEvent]]:
    """Run ``generations``; the channel ends when all have finished. Leaving the context cancels those that have not.

    The first error of any of them ends them all, and leaves the context in an exception group.
    """
    sender, receiver = trio.open_memory_channel[ChoiceEvent](EVENTS_WAITING_MAX)
    places = trio.CapacityLimiter(GENERATIONS_AT_ONCE_MAX)
    async with trio.open_nursery() as nursery:
        for index, generation in enumerate(generations):
            nursery.start_soon(_run, service, index, generation, places, sender.clone())
        sender.close()
        yield receiver
        nursery.cancel_scope.cancel()


async def _run(
    service: ModelService,
    index: int,
    generation: GenerationRequest,
    places: trio.CapacityLimiter,
    sender: trio.MemorySendChannel[ChoiceEvent],
) -> None:
    async with places, service.generate(generation) as events:
        async for event in events:
            await sender.send(ChoiceEvent(index, event))
    # Not closed after an error: the end of the channel says that all has gone well.
    sender.close()


async def receive_ready(events: trio.MemoryReceiveChannel[ChoiceEvent]) -> list[ChoiceEvent]:
    """Wait for at least one event and take all that are there; an empty list means that there will be no more.

    Taking them together lets a stream write several tokens with one system call when the engine is the faster side.
    """
    try:
        ready = [await events.receive()]
    except trio.EndOfChannel:
        return []
    while len(ready) <= EVENTS_WAITING_MAX:
        try:
            ready.append(events.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            break
    return ready
