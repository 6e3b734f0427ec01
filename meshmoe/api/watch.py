"""Who is still interested in an answer: the client until it goes away, the node until it stops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from meshmoe.api.errors import ClientGoneError, NotServingError


@dataclass
class Watch:
    """Why the work under `watching` was cut short, if it was."""

    client_gone: bool = False
    node_stopping: bool = False

    def raise_for_end(self) -> None:
        """Raise if the work was cut short.

        Raises:
            ClientGoneError: nobody is left to be answered.
            NotServingError: the node is stopping.
        """
        if self.client_gone:
            raise ClientGoneError
        if self.node_stopping:
            raise NotServingError("this node is stopping")


@asynccontextmanager
async def watching(client_gone: trio.Event, stopping: trio.Event) -> AsyncIterator[Watch]:
    """Cancel the body when the client disconnects or the node stops; `Watch` says which, once the context has ended.

    Args:
        client_gone: Set when the connection is of no use any more.
        stopping: Set when the node stops.
    """
    watch = Watch()
    async with trio.open_nursery() as nursery:

        async def watch_client() -> None:
            await client_gone.wait()
            watch.client_gone = True
            nursery.cancel_scope.cancel()

        async def watch_node() -> None:
            await stopping.wait()
            watch.node_stopping = True
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch_client)
        nursery.start_soon(watch_node)
        yield watch
        nursery.cancel_scope.cancel()
