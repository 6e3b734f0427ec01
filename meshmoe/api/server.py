"""The server: listens on the Unix socket (and a loopback port), hands connections to hypercorn, stops within seconds.

hypercorn's own ``serve`` is not used but the part under it, one `Http1Server` a connection: that lets this module
own the listeners and the connections, which is what a prompt stop needs (see connection.py).
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.trio.worker_context import WorkerContext

from meshmoe.api.app import build_app
from meshmoe.api.cause import cause
from meshmoe.api.connection import Connection
from meshmoe.api.http1 import Http1Server
from meshmoe.api.loopback import listen_http
from meshmoe.api.service import ModelService
from meshmoe.api.status_feed import StatusFeed
from meshmoe.api.unix_socket import listening_unix_socket

CONNECTIONS_MAX = 512
KEEP_ALIVE_S = 75.0
"""For the next request on a connection, and for the whole head of any request."""

STOP_GRACE_S = 1.0
"""For answers under way to end with an error that says why, before their connections are cut."""

_FULL_BODY = b'{"error":{"message":"this node has too many connections: try again","type":"rate_limit_error"}}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)

log = logging.getLogger("meshmoe.api")


class ApiAddresses(NamedTuple):
    """Where the API can be reached: the socket's path, and the TCP address if it was asked for."""

    socket_path: Path
    http: tuple[str, int] | None


async def serve_api(
    service: ModelService,
    socket_path: Path,
    http: tuple[str, int] | None = None,
    *,
    api_key: str | None = None,
    task_status: trio.TaskStatus[ApiAddresses] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API until cancelled.

    When cancelled it stops listening at once, ends open streams with an error that says so, and returns within about a
    second whatever the clients do. The socket file is gone then.

    Args:
        service: The node to speak for.
        socket_path: Path of the Unix socket.
        http: Host and port of an additional TCP listener, loopback only unless there is a key; port 0 takes a free one.
        api_key: What requests over TCP must bring; None asks for none.
        task_status: Told the addresses when they are open.

    Raises:
        ConfigError: The socket or the port cannot be used.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(listening_unix_socket(socket_path))]
        http_address = None
        if http is not None:
            sockets.append(stack.enter_context(listen_http(*http, keyed=api_key is not None)))
            http_address = sockets[1].getsockname()[:2]
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
        server = _Server(service, api_key)
        async with trio.open_nursery() as nursery:
            handlers = await nursery.start(server.host_handlers)
            nursery.start_soon(server.feed.run)
            try:
                task_status.started(ApiAddresses(socket_path, http_address))
                await trio.serve_listeners(server.handle, listeners, handler_nursery=handlers)
            finally:
                server.stopping.set()


class _Server:
    """Connections and what they share."""

    def __init__(self, service: ModelService, api_key: str | None) -> None:
        self.stopping = trio.Event()
        self.feed = StatusFeed(service)
        app = build_app(service, self.feed, self.stopping, api_key)
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]  # says Any for messages, means it
        self._config = _config()
        self._context = WorkerContext(None)
        self._connections: set[Connection] = set()
        self._all_closed = trio.Event()

    async def host_handlers(self, *, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        """Hold the nursery of the connections, out of reach of the cancellation that starts the stop."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                task_status.started(nursery)
                await self.stopping.wait()
                await self._context.terminated.set()
                nursery.start_soon(self._cut_off, nursery)

    async def _cut_off(self, nursery: trio.Nursery) -> None:
        if self._connections:
            with trio.move_on_after(STOP_GRACE_S):
                await self._all_closed.wait()
        for connection in list(self._connections):
            connection.abort()
        nursery.cancel_scope.cancel()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        if len(self._connections) >= CONNECTIONS_MAX:
            with trio.move_on_after(1):
                await stream.send_all(_FULL)
            await trio.aclose_forcefully(stream)
            return
        connection = Connection(stream)
        over_tcp = stream.socket.family != trio.socket.AF_UNIX
        state = {"over_tcp": over_tcp, "connection": connection}
        self._connections.add(connection)
        try:
            await Http1Server(self._app, self._config, self._context, connection, state).run()
        except Exception as group:
            error = cause(group)
            if not isinstance(error, trio.ClosedResourceError | trio.BrokenResourceError | OSError):
                log.error("connection: %s: %s", type(error).__name__, error)
        finally:
            self._connections.discard(connection)
            connection.abort()
            if self.stopping.is_set() and not self._connections:
                self._all_closed.set()


class _OneLineLogger(Logger):
    """hypercorn's logger without tracebacks: an error is one line."""

    async def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        await self.error(message, *args, **kwargs)


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.logger_class = _OneLineLogger
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.include_server_header = False
    return config
