"""A client of the node on this box, for the commands: httpx over its Unix socket, errors in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import msgspec

from meshmoe.api.socket_path import check_length
from meshmoe.core.errors import (
    CapacityError,
    MeshmoeError,
    OverloadedError,
    PeerError,
    RequestError,
)

CONNECT_S_MAX = 5.0
STATUS_S_MAX = 15.0

_BY_KIND = {kind.kind: kind for kind in (CapacityError, OverloadedError, PeerError)}


class NoNodeError(MeshmoeError):
    """Nobody answers at the socket."""


class NodeClient:
    """Talks to one node; use it as a context manager.

    Args:
        socket_path: The node's socket.
    """

    def __init__(self, socket_path: Path) -> None:
        check_length(socket_path.absolute())
        self._path = socket_path
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket_path)),
            base_url="http://localhost",
            timeout=httpx.Timeout(STATUS_S_MAX, connect=CONNECT_S_MAX),
            trust_env=False,
        )

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str) -> bytes:
        """The body of ``GET path``."""
        with self._explained():
            response = self._http.get(path)
            _raise_for(response)
            return response.content

    @contextmanager
    def post(self, path: str, body: Any = None) -> Iterator[Iterator[str]]:
        """``POST path`` with a JSON body; gives the lines of the response as they come, however long they take."""
        timeout = httpx.Timeout(None, connect=CONNECT_S_MAX)
        content = b"" if body is None else msgspec.json.encode(body)
        with self._explained(), self._http.stream("POST", path, content=content, timeout=timeout) as response:
            if response.is_error:
                response.read()
                _raise_for(response)
            yield response.iter_lines()

    def post_events(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """``POST path`` and decode its server-sent events.

        Raises:
            MeshmoeError: An event is an error, or the stream breaks off before its end.
        """
        with self.post(path, body) as lines:
            for line in lines:
                if not line.startswith("data: "):
                    continue
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    return
                event = msgspec.json.decode(data)
                raise_if_error(event)
                yield event
        raise NoNodeError(f"the node at {self._path} broke its answer off")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in words why the node cannot be reached."""
        try:
            yield
        except httpx.ConnectTimeout:
            raise NoNodeError(f"the node at {self._path} takes no connections: it is overloaded, or stopped") from None
        except httpx.ConnectError as error:
            if isinstance(_root(error), PermissionError):
                raise NoNodeError(f"{self._path} belongs to another user") from None
            raise NoNodeError(
                f"no node answers at {self._path}: start one with `meshmoe join`, or name its socket with --socket"
            ) from None
        except httpx.TimeoutException:
            raise NoNodeError(f"the node at {self._path} does not answer") from None
        except httpx.TransportError as error:
            raise NoNodeError(f"the node at {self._path} went away while it answered ({error})") from None


def _root(error: BaseException) -> BaseException:
    """The operating system's error behind httpx's and httpcore's."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _raise_for(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        answer = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        answer = {}
    raise _error(answer, f"the node answers with HTTP {response.status_code}")


def raise_if_error(answer: Any) -> None:
    """Raise the error that ``answer`` describes, if it describes one."""
    if isinstance(answer, dict) and "error" in answer:
        raise _error(answer)


def _error(answer: Any, otherwise: str = "the node answers with an error") -> MeshmoeError:
    """The error that the node met, with the exit code that it would have here."""
    inner = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(inner, dict):
        return MeshmoeError(otherwise)
    message = str(inner.get("message", otherwise))
    if inner.get("type") == RequestError.kind:
        return RequestError(message)
    return _BY_KIND.get(str(inner.get("type")), MeshmoeError)(message)
