"""Where a node is, and what it means if nobody answers there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from meshmoe.api.error_reading import NoNodeError
from meshmoe.api.socket_path import check_length, default_socket_path

CONNECT_S_MAX = 5.0
SILENCE_S_MAX = 600.0
"""Between two pieces of an answer; the node itself ends what takes too long."""


class Place(NamedTuple):
    """A node's API.

    Attributes:
        socket_path: Its Unix socket; None where it is reached over TCP.
        base_url: Of its API.
        headers: That every request has.
    """

    socket_path: Path | None
    base_url: str
    headers: dict[str, str]

    @property
    def timeout(self) -> httpx.Timeout:
        """Of its requests."""
        return httpx.Timeout(SILENCE_S_MAX, connect=CONNECT_S_MAX)


def place_of(where: str | Path | None, api_key: str | None) -> Place:
    """Understand what ``connect`` was given.

    Raises:
        ConfigError: The path is too long for a socket.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    if isinstance(where, str) and where.startswith(("http://", "https://")):
        return Place(None, where.rstrip("/"), headers)
    path = default_socket_path() if where is None else Path(where)
    check_length(path)
    return Place(path, "http://localhost", headers)


@contextmanager
def in_words(place: Place) -> Iterator[None]:
    """Around whatever talks to the node.

    Raises:
        NoNodeError: It does not answer; the message says where and what to do.
    """
    where = place.socket_path or place.base_url
    try:
        yield
    except httpx.ConnectError:
        raise NoNodeError(f"no node answers at {where}: start one with `meshmoe join`, or name its socket") from None
    except httpx.TimeoutException:
        raise NoNodeError(f"the node at {where} does not answer") from None
    except httpx.TransportError as error:
        raise NoNodeError(f"the node at {where} went away while it answered ({error})") from None
