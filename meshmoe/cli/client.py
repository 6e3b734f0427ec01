"""A client of the node on this box, for the commands: HTTP over its Unix socket, errors in words.

On the standard library's ``http.client``: httpx brings trio, h2 and half of rich along, and took two thirds of the time
of ``meshmoe status`` for what are two methods here.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from meshmoe.api.error_reading import NoNodeError, raise_for, raise_if_error
from meshmoe.api.socket_path import check_length

CONNECT_S_MAX = 5.0
STATUS_S_MAX = 15.0


class NodeClient:
    """Talks to one node.

    Args:
        socket_path: The node's socket.

    Raises:
        ConfigError: The path is too long for a socket.
    """

    def __init__(self, socket_path: Path) -> None:
        check_length(socket_path)
        self._path = socket_path

    def get(self, path: str) -> bytes:
        """The body of ``GET path``.

        Raises:
            MeshmoeError: There is no node, or it answers with an error.
        """
        with self._answer("GET", path, None, STATUS_S_MAX) as response, self._in_words():
            return response.read()

    def delete(self, path: str) -> bytes:
        """The body of ``DELETE path``.

        Raises:
            MeshmoeError: There is no node, or it answers with an error.
        """
        with self._answer("DELETE", path, None, STATUS_S_MAX) as response, self._in_words():
            return response.read()

    @contextmanager
    def post(self, path: str, body: Any = None) -> Iterator[Iterator[str]]:
        """``POST path`` with a JSON body; gives the lines of the response as they come, however long they take.

        Raises:
            MeshmoeError: There is no node, or it answers with an error.
        """
        with self._answer("POST", path, b"" if body is None else msgspec.json.encode(body), None) as response:
            yield self._lines(response)

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

    def events(self, path: str) -> Iterator[tuple[str, Any]]:
        """Follow the server-sent events of ``GET path``: the name of each, and its data.

        Raises:
            MeshmoeError: There is no node, it answers with an error, is silent for long, or goes.
        """
        name = ""
        with self._answer("GET", path, None, STATUS_S_MAX) as response:
            for line in self._lines(response):
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, msgspec.json.decode(line.removeprefix("data: "))
        raise NoNodeError(f"the node at {self._path} has stopped")

    @contextmanager
    def _answer(
        self, method: str, path: str, body: bytes | None, timeout_s: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self._path)
        try:
            with self._in_words():
                connection.connect()
                connection.sock.settimeout(timeout_s)
                connection.request(method, path, body, {"content-type": "application/json"})
                response = connection.getresponse()
                if response.status >= 400:
                    raise_for(response.status, response.read())
            yield response
        finally:
            connection.close()

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Around whatever talks to the node, and nothing else: a broken pipe may also be standard output."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise NoNodeError(
                f"no node answers at {self._path}: start one with `meshmoe join`, or name its socket with --socket"
            ) from None
        except PermissionError:
            raise NoNodeError(f"{self._path} belongs to another user") from None
        except (TimeoutError, BlockingIOError):
            raise NoNodeError(f"the node at {self._path} does not answer") from None
        except (http.client.HTTPException, OSError) as error:
            raise NoNodeError(f"the node at {self._path} went away while it answered ({error})") from None

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[str]:
        while True:
            with self._in_words():
                line = response.readline()
            if not line:
                return
            yield line.decode().rstrip("\r\n")


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection that finds its server by a path."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CONNECT_S_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(CONNECT_S_MAX)
        self.sock.connect(os.fspath(self._path))
