"""A client's connection under hypercorn, with the limits that hypercorn does not have.

hypercorn shields its writes from cancellation, so a client that stops reading would hold its handler, and a stopping
node, for ever. Here a write has a deadline, and the server can end a connection from outside: closing the socket wakes
a shielded write.
"""

from __future__ import annotations

import trio

WRITE_S_MAX = 30.0
"""For one piece of an answer, which is at most some tens of kilobytes while it streams."""


class Connection:
    """What hypercorn's ``TCPServer`` needs of a stream.

    Args:
        stream: The accepted connection.

    Attributes:
        socket: The connection's.
        gone: Set once the client cannot be answered any more: it has closed, does not read, or was cut off. A client
            that only says that it will send nothing more counts as gone too; HTTP clients do not do that.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.gone = trio.Event()

    async def send_all(self, data: bytes) -> None:
        """Send ``data``; a client that does not take it in time is cut off."""
        try:
            with trio.fail_after(WRITE_S_MAX):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            self.abort()
            raise trio.BrokenResourceError("the client does not read") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.gone.set()
            raise
        except trio.BusyResourceError:
            # hypercorn's writes exclude one another, so this is its half-close: the client broke the protocol.
            self.gone.set()
            raise trio.ClosedResourceError from None

    async def receive_some(self, bytes_max: int) -> bytes:
        """Receive what is there."""
        try:
            data = bytes(await self._stream.receive_some(bytes_max))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.gone.set()
            raise
        if not data:
            self.gone.set()
        return data

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close it."""
        self.gone.set()
        await self._stream.aclose()

    def abort(self) -> None:
        """Close it at once, from any task; whoever reads or writes it gets an error."""
        self.gone.set()
        self.socket.close()
