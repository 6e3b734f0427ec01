"""The node's own endpoints: its state, its health, and leaving."""

from __future__ import annotations

from typing import Any

import trio
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from meshmoe.api.answer import require_ready, unknown_model
from meshmoe.api.cause import cause
from meshmoe.api.errors import JsonResponse, error_answer
from meshmoe.api.json_lines import encode_line
from meshmoe.api.service import ModelService
from meshmoe.core.errors import MeshmoeError


async def list_models(request: Request) -> JsonResponse:
    """Answer ``GET /v1/models``."""
    return JsonResponse({"object": "list", "data": [_model(request.app.state.service)]})


async def one_model(request: Request) -> JsonResponse:
    """Answer ``GET /v1/models/{id}``."""
    service: ModelService = request.app.state.service
    name = request.path_params["name"]
    if name not in ("default", service.model_name):
        raise unknown_model(service, name)
    return JsonResponse(_model(service))


def _model(service: ModelService) -> dict[str, Any]:
    model = {"id": service.model_name, "object": "model", "created": service.started_s, "owned_by": "meshmoe"}
    try:
        return {**model, "meshmoe": {"context_tokens": service.context_tokens}}
    except MeshmoeError:
        return model


async def health(request: Request) -> JsonResponse:
    """Answer ``GET /health``: 200 if a request would be served now, else 503 with the reason."""
    service: ModelService = request.app.state.service
    try:
        require_ready(service)
    except MeshmoeError as error:
        return JsonResponse({"status": "unavailable", "reason": str(error)}, status_code=503)
    return JsonResponse({"status": "ok", "reason": ""})


async def mesh_leave(request: Request) -> ASGIApp:
    """Answer ``POST /mesh/leave``."""
    return LeaveStream(request.app.state.service)


class LeaveStream:
    """The ASGI response that leaves the mesh and tells how it goes, one JSON object a line.

    The lines are `LeaveProgress`; the last one is ``{"done":true}``, or an error in OpenAI's shape. Leaving goes on if
    the client stops listening: half-left is not a state that anybody would want to be in.
    """

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave."""
        headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-cache")]
        started = False

        async def line(content: Any, *, more: bool = True) -> None:
            nonlocal started
            body = encode_line(content) + b"\n"
            # Shielded for the reason given in event_stream.py.
            with trio.CancelScope(shield=True):
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            async with self._service.leave() as progress:
                async for step in progress:
                    await line(step)
                await line({"done": True}, more=False)
        except Exception as group:
            error = cause(group)
            if not started:
                raise error from None
            await line(error_answer(error), more=False)
