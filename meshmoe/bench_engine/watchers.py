"""People who look on: many that follow a node's status on its socket, and many with its page open.

They take what the node sends and do nothing with it, so that what is measured is what they cost the node, not what a
browser costs the box that it runs on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from meshmoe.bench_engine.openai_stream import ServerError

FIRST_EVENT_TIMEOUT_S = 20.0

_PAGE_PATHS = ("/", "/page/style.css", "/page/main.js", "/page/vendor/cytoscape.min.js", "/mesh/history")


@dataclass(slots=True)
class Watched:
    """What watchers have received so far.

    Attributes:
        events: Server-sent events, of all of them.
        received_bytes: Likewise, with what the pages are made of.
    """

    events: int = 0
    received_bytes: int = 0


@asynccontextmanager
async def looking_on(socket_path: Path, page: tuple[str, int], statuses: int, pages: int) -> AsyncIterator[Watched]:
    """Let people look on while the block runs; it begins when every one of them has had a first event.

    Args:
        socket_path: Of the node.
        page: Host and port of its page.
        statuses: How many follow the status on the socket.
        pages: How many open the page: its files, the last hour, then the events.

    Raises:
        ServerError: The node does not serve one of them.
    """
    watched = Watched()
    async with trio.open_nursery() as nursery:
        with trio.fail_after(FIRST_EVENT_TIMEOUT_S):
            for _ in range(statuses):
                await nursery.start(_follow, await trio.open_unix_socket(str(socket_path)), watched)
            for _ in range(pages):
                for path in _PAGE_PATHS:
                    await _fetch(await trio.open_tcp_stream(*page), page, path, watched)
                await nursery.start(_follow, await trio.open_tcp_stream(*page), watched)
        yield watched
        nursery.cancel_scope.cancel()


def _request(path: str, connection: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: {connection}\r\n\r\n".encode()


async def _fetch(stream: trio.SocketStream, page: tuple[str, int], path: str, watched: Watched) -> None:
    async with stream:
        await stream.send_all(_request(path, "close"))
        first = True
        while data := await stream.receive_some(1 << 16):
            if first and not data.startswith(b"HTTP/1.1 200"):
                raise ServerError(f"http://{page[0]}:{page[1]}{path}: {data.splitlines()[0].decode()}")
            first = False
            watched.received_bytes += len(data)


async def _follow(
    stream: trio.SocketStream, watched: Watched, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with stream:
        await stream.send_all(_request("/mesh/events", "keep-alive"))
        started = False
        while data := await stream.receive_some(1 << 16):
            watched.received_bytes += len(data)
            watched.events += data.count(b"event: ")
            if not started and b"event: status" in data:
                started = True
                task_status.started()
    raise ServerError("the node ended the events of a watcher")
