"""hypercorn's connection handler, for HTTP/1.1 alone.

hypercorn also speaks HTTP/2 on a plain socket, to clients that begin with it or that offer an upgrade (Java's client
does so by default). It has nothing to offer between programs of one box, and would need its own care for slow readers
and disconnects; so offers are ignored, which HTTP/1.1 allows, and HTTP/2 without asking is refused by gate.py.
"""

from __future__ import annotations

from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from meshmoe.api.connection import Connection

CLOSE_S_MAX = 1.0


class Http1Protocol(H11Protocol):
    """Never changes to another version."""

    async def _check_protocol(self, event: h11.Request) -> None:
        pass


class Http1Server(TCPServer):
    """Serves one connection until it is closed.

    Args:
        app: The application.
        config: hypercorn's.
        context: What the connections of a server share.
        connection: The client.
        state: What requests find in their scope.
    """

    def __init__(
        self, app: AppWrapper, config: Config, context: WorkerContext, connection: Connection, state: dict[str, Any]
    ) -> None:
        super().__init__(app, config, context, state, connection)  # type: ignore[arg-type]  # typed as TLS needlessly
        self._connection = connection

    async def run(self) -> None:
        """Read requests and answer them; like the inherited method, but for the protocol and the end of reading."""
        socket = self._connection.socket
        try:
            async with TaskGroup() as task_group:
                self._task_group = task_group
                self.protocol = Http1Protocol(  # type: ignore[assignment]  # has what TCPServer uses of its own choice
                    self.app,
                    self.config,
                    self.context,
                    task_group,
                    ConnectionState(self.state),
                    False,
                    parse_socket_addr(socket.family, socket.getpeername()),
                    parse_socket_addr(socket.family, socket.getsockname()),
                    self.protocol_send,
                )
                await self.protocol.initiate()
                await self.idle_task.restart(task_group, self._idle_timeout)
                await self._read_while_there()
        except OSError:
            pass
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        """Write; a client that has gone needs no time to think of another request."""
        if not (isinstance(event, Updated) and self._connection.gone.is_set()):
            await super().protocol_send(event)

    async def _read_while_there(self) -> None:
        """Read until the client has gone, however that came out.

        hypercorn stops reading while a client that sent more than one request waits for the first answer, and would
        wait for ever if that answer could not be written. It also keeps a connection that the client has closed until
        the time for a next request is over.
        """
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await self._connection.gone.wait()
                # Here, and not in whoever noticed, so that hypercorn finishes telling the application first.
                with trio.move_on_after(CLOSE_S_MAX, shield=True):
                    await self.protocol.handle(Closed())
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await self._read_data()
        await self.idle_task.stop()
