"""What a node answers instead of an answer, as exceptions; for the commands and the client library."""

from __future__ import annotations

from typing import Any

import msgspec

from meshmoe.core.errors import CapacityError, MeshmoeError, OverloadedError, PeerError, RequestError

_BY_KIND = {kind.kind: kind for kind in (CapacityError, OverloadedError, PeerError)}


class NoNodeError(MeshmoeError):
    """Nobody answers at the socket."""


def raise_if_error(answer: Any) -> None:
    """Raise the error that ``answer`` describes, if it describes one."""
    if isinstance(answer, dict) and "error" in answer:
        raise error_of(answer)


def raise_for(status: int, body: bytes) -> None:
    """Raise the error that a response with a status of 400 and above describes."""
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        answer = None
    raise error_of(answer, f"the node answers with HTTP {status}")


def error_of(answer: Any, otherwise: str = "the node answers with an error") -> MeshmoeError:
    """The error that the node met, of the class that it has there."""
    inner = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(inner, dict):
        return MeshmoeError(otherwise)
    message = str(inner.get("message", otherwise))
    if inner.get("type") == RequestError.kind:
        return RequestError(message)
    return _BY_KIND.get(str(inner.get("type")), MeshmoeError)(message)
