"""The application: which path is answered by whom."""

from __future__ import annotations

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from meshmoe.api.cause import cause
from meshmoe.api.chat import chat_completions
from meshmoe.api.completions import completions
from meshmoe.api.errors import error_response
from meshmoe.api.gate import Gate
from meshmoe.api.keeping import expel, one_token, rotate, tokens
from meshmoe.api.mesh import health, list_models, mesh_leave, one_model
from meshmoe.api.metrics import metrics
from meshmoe.api.openapi import openapi
from meshmoe.api.page import page, page_file
from meshmoe.api.prompts import PromptEncoder
from meshmoe.api.service import ModelService
from meshmoe.api.status_feed import StatusFeed
from meshmoe.api.status_stream import mesh_events, mesh_history, mesh_status
from meshmoe.api.trace import mesh_trace
from meshmoe.core.errors import RequestError

_ROUTES = [
    Route("/", page),
    Route("/page/{name:path}", page_file),
    Route("/health", health),
    Route("/metrics", metrics),
    Route("/openapi.json", openapi),
    Route("/v1/models", list_models),
    Route("/v1/models/{name:path}", one_model),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/mesh/status", mesh_status),
    Route("/mesh/tokens", tokens, methods=["GET", "POST"]),
    Route("/mesh/tokens/{id}", one_token, methods=["DELETE"]),
    Route("/mesh/rotate", rotate, methods=["POST"]),
    Route("/mesh/expel", expel, methods=["POST"]),
    Route("/mesh/events", mesh_events),
    Route("/mesh/history", mesh_history),
    Route("/mesh/trace", mesh_trace),
    Route("/mesh/leave", mesh_leave, methods=["POST"]),
]


def build_app(service: ModelService, feed: StatusFeed, stopping: trio.Event, api_key: str | None = None) -> ASGIApp:
    """The ASGI application of one node.

    Args:
        service: The node.
        feed: Its statuses; the caller runs it.
        stopping: Set when the node stops; answers under way then end with an error.
        api_key: What requests over TCP must bring, if anything.
    """
    app = Starlette(
        routes=_ROUTES,
        exception_handlers={HTTPException: _routing_error, Exception: _error},  # type: ignore[dict-item]
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.feed = feed
    app.state.stopping = stopping
    app.state.encoder = PromptEncoder(service)
    return Gate(app, api_key)


async def _error(_request: Request, error: Exception) -> Response:
    return error_response(cause(error))


async def _routing_error(request: Request, error: HTTPException) -> Response:
    """No such path, or not with that method."""
    headers = dict(error.headers or {})
    where = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        allowed = headers.get("Allow", "")
        problem = RequestError(f"{where}: use {allowed}", code="method_not_allowed", http_status=405)
    elif request.url.path.startswith("/v1/embeddings"):
        problem = RequestError(
            f"{where}: this mesh serves a model that writes text; it makes no embeddings",
            code="unknown_url",
            http_status=404,
        )
    else:
        offered = ", ".join(route.path.replace(":path", "") for route in _ROUTES)
        problem = RequestError(f"{where} does not exist; there is {offered}", code="unknown_url", http_status=404)
    return error_response(problem, headers)
