"""Running an answer's generations for a client, at once or as a stream."""

from __future__ import annotations

import trio
from starlette.requests import Request
from starlette.types import ASGIApp

from meshmoe.api.answer import Answer
from meshmoe.api.cause import cause
from meshmoe.api.choices import run_choices
from meshmoe.api.errors import JsonResponse
from meshmoe.api.event_stream import EventStream
from meshmoe.api.watch import watching
from meshmoe.engine.request import FinishEvent, TokenEvent


async def respond(request: Request, answer: Answer, *, stream: bool) -> ASGIApp:
    """Answer a generation request."""
    client_gone: trio.Event = request.scope["state"]["connection"].gone
    stopping: trio.Event = request.app.state.stopping
    if stream:
        return EventStream(answer, client_gone, stopping)
    return await _whole(answer, client_gone, stopping)


async def _whole(answer: Answer, client_gone: trio.Event, stopping: trio.Event) -> JsonResponse:
    """Generate everything, then answer; gives up when the client does."""
    tokens: list[list[TokenEvent]] = [[] for _ in answer.shapes]
    finishes: dict[int, FinishEvent] = {}
    complete = False
    try:
        async with (
            watching(client_gone, stopping) as watch,
            run_choices(answer.service, answer.generations) as events,
        ):
            async for choice, event in events:
                if isinstance(event, FinishEvent):
                    finishes[choice] = event
                    answer.finished.append(event.stats)
                else:
                    tokens[choice].append(event)
            complete = True
    except Exception as error:
        raise cause(error) from None
    if not complete:
        watch.raise_for_end()
    choices = [shape.whole(tokens[i], finishes[i]) for i, shape in enumerate(answer.shapes)]
    return JsonResponse(answer.envelope(choices, answer.usage(), answer.report()))
