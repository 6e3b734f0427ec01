"""``GET /openapi.json``: the API described for programs, made from the structs that requests are read into.

OpenAPI 3.1. Answers of generations are described by their envelope; what a stream's events hold is in docs/api.md.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from meshmoe import __version__
from meshmoe.api.errors import ErrorAnswer, JsonResponse
from meshmoe.api.keeping import ExpelBody, NewTokenBody
from meshmoe.api.request_types import ChatBody, CompletionBody
from meshmoe.node.history import HistorySample
from meshmoe.node.mesh_keeper import TokenStatus
from meshmoe.node.status import NodeStatus

_OBJECT = {"type": "object"}


async def openapi(_request: Request) -> Response:
    """Answer ``GET /openapi.json``."""
    return JsonResponse(description())


@cache
def description() -> dict[str, Any]:
    """The whole document."""
    kinds = [CompletionBody, ChatBody, NewTokenBody, ExpelBody, ErrorAnswer, NodeStatus, HistorySample, TokenStatus]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    of = dict(zip(kinds, schemas, strict=True))
    error = of[ErrorAnswer]

    def operation(summary: str, answer: Any, body: Any = None, **more: Any) -> dict[str, Any]:
        responses = {
            "200": {"description": "done", "content": _json(answer)},
            **{status: {"description": what, "content": _json(error)} for status, what in _ERRORS.items()},
        }
        described: dict[str, Any] = {"summary": summary, "responses": responses, **more}
        if body is not None:
            described["requestBody"] = {"required": True, "content": _json(body)}
        return described

    def named(parameter: str) -> dict[str, Any]:
        schema = {"type": "string", "minLength": 1}
        return {"parameters": [{"name": parameter, "in": "path", "required": True, "schema": schema}]}

    listed = {"type": "object", "required": ["tokens"], "properties": {"tokens": _list(of[TokenStatus])}}
    paths = {
        "/health": {"get": operation("Whether a request would be served now", _OBJECT)},
        "/v1/models": {"get": operation("The model of this mesh", _OBJECT)},
        "/v1/models/{name}": {"get": operation("One model", _OBJECT, **named("name"))},
        "/v1/completions": {"post": operation("Continue a text", _OBJECT, of[CompletionBody])},
        "/v1/chat/completions": {"post": operation("Answer a chat", _OBJECT, of[ChatBody])},
        "/mesh/status": {"get": operation("This node and its mesh", of[NodeStatus])},
        "/mesh/history": {"get": operation("How it went lately", _list(of[HistorySample]))},
        "/mesh/tokens": {
            "get": operation("Join tokens that were issued", listed),
            "post": operation("Make a join token", of[TokenStatus], of[NewTokenBody]),
        },
        "/mesh/tokens/{id}": {"delete": operation("Revoke a join token", _OBJECT, **named("id"))},
        "/mesh/rotate": {"post": operation("Give the mesh a new secret", _OBJECT)},
        "/mesh/expel": {"post": operation("Strike a member out", _OBJECT, of[ExpelBody])},
    }
    info = {
        "title": "meshmoe",
        "version": __version__,
        "description": "One node of a mesh, as its local clients see it.",
    }
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": components}}


_ERRORS = {
    "400": "the request cannot be served as it stands",
    "401": "no API key, or a wrong one",
    "403": "not from here: another origin, or for the Unix socket only",
    "404": "no such thing",
    "405": "not with this method",
    "408": "the body did not arrive in time",
    "409": "the mesh has none of this",
    "413": "the body is too large",
    "429": "too many requests at once",
    "503": "not now: experts are missing, or the node starts or leaves",
}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _list(schema: Any) -> dict[str, Any]:
    return {"type": "array", "items": schema}
