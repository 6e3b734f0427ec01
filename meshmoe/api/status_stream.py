"""``GET /mesh/events``: the status as server-sent events, whole at first, then what changes every second."""

from __future__ import annotations

import trio
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from meshmoe.api.errors import ClientGoneError, JsonResponse
from meshmoe.api.event_stream import HEADERS
from meshmoe.api.status_feed import StatusFeed, without_token
from meshmoe.api.watch import watching


async def mesh_events(request: Request) -> ASGIApp:
    """Answer ``GET /mesh/events``."""
    gone: trio.Event = request.scope["state"]["connection"].gone
    return StatusStream(request.app.state.feed, gone, request.app.state.stopping)


async def mesh_status(request: Request) -> JsonResponse:
    """Answer ``GET /mesh/status``."""
    feed: StatusFeed = request.app.state.feed
    status = feed.status()
    return JsonResponse(without_token(status) if request.scope["state"]["over_tcp"] else status)


async def mesh_history(request: Request) -> JsonResponse:
    """Answer ``GET /mesh/history``."""
    return JsonResponse(list(request.app.state.service.history()))


class StatusStream:
    """The ASGI response; it ends when the client goes or the node stops."""

    def __init__(self, feed: StatusFeed, client_gone: trio.Event, stopping: trio.Event) -> None:
        self._feed = feed
        self._client_gone = client_gone
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write events until nobody wants them."""
        with self._feed.watching(private=not scope["state"]["over_tcp"]) as watcher:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            async with watching(self._client_gone, self._stopping) as watch:
                while not self._stopping.is_set():
                    event = await watcher.next()
                    # Shielded for the reason given in event_stream.py.
                    with trio.CancelScope(shield=True):
                        await send({"type": "http.response.body", "body": event, "more_body": True})
            if watch.client_gone:
                raise ClientGoneError
            await send({"type": "http.response.body", "body": b"", "more_body": False})
