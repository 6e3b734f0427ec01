"""Errors as OpenAI's clients expect them: one JSON object, the right status, and Retry-After where waiting helps."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from meshmoe.core.errors import MeshmoeError, RequestError

RETRY_AFTER_S = {429: 1, 503: 5}
"""What a refused client is told to wait: a place frees up in about a second, a lacking node joins in several."""


class ErrorBody(msgspec.Struct, frozen=True):
    """The inner object of OpenAI's error shape."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """OpenAI's error shape; ``status`` is the HTTP status and does not travel in the body."""

    error: ErrorBody


class NotServingError(MeshmoeError):
    """The node is starting, leaving or stopping: another moment, or another node, would serve the request."""

    http_status = 503
    kind = "not_serving_error"


class ClientGoneError(Exception):
    """The client went away, so nobody is left to be answered."""


class JsonResponse(Response):
    """A response whose body is encoded by msgspec, which knows our structs and leaves UNSET fields out."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode ``content``."""
        return msgspec.json.encode(content)


def error_status(error: BaseException) -> int:
    """HTTP status of ``error``; anything that is not meant for people is 500."""
    return error.http_status if isinstance(error, MeshmoeError) else 500


def error_answer(error: BaseException) -> ErrorAnswer:
    """Describe ``error`` to a client; the inside of an unexpected one stays in the log."""
    if not isinstance(error, MeshmoeError):
        name = type(error).__name__
        return ErrorAnswer(ErrorBody(f"internal error ({name}): the node's log says more", "server_error"))
    param, code = (error.param, error.code) if isinstance(error, RequestError) else (None, None)
    return ErrorAnswer(ErrorBody(str(error), error.kind, param, code))


def error_response(error: BaseException, headers: dict[str, str] | None = None) -> JsonResponse:
    """Answer a request with ``error``."""
    status = error_status(error)
    headers = dict(headers or {})
    if status in RETRY_AFTER_S:
        headers["retry-after"] = str(RETRY_AFTER_S[status])
    return JsonResponse(error_answer(error), status_code=status, headers=headers)
