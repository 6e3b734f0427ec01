"""The transport of a node: on the port that it was given, else on the usual one, else on free ones."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from meshmoe.core.errors import MeshmoeError
from meshmoe.node.settings import DEFAULT_PORT, NodeSettings
from meshmoe.transport.base import Transport
from meshmoe.transport.impaired import ImpairedTransport, open_impaired_transport
from meshmoe.transport.keyring import Keyring
from meshmoe.transport.zmq_transport import open_zmq_transport

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_listening(
    settings: NodeSettings, generation: int, keyring: Keyring | None, seed: int
) -> AsyncIterator[tuple[Transport, ImpairedTransport | None]]:
    """Listen for as long as the block lasts.

    Args:
        settings: Of the node.
        generation: Of this life.
        keyring: Of an encrypted mesh.
        seed: Of emulated links.

    Yields:
        The transport, and the same where links are emulated.

    Raises:
        MeshmoeError: The port that was asked for is taken, or no address is to be had.
    """
    host, port = settings.listen
    async with AsyncExitStack() as stack:
        try:
            opened = open_zmq_transport(
                settings.node, generation, host, DEFAULT_PORT if port is None else port, keyring=keyring
            )
            transport: Transport = await stack.enter_async_context(opened)
        except MeshmoeError:
            if port is not None:
                raise
            logger.info("port %d is taken: listening on free ones", DEFAULT_PORT)
            opened = open_zmq_transport(settings.node, generation, host, 0, keyring=keyring)
            transport = await stack.enter_async_context(opened)
        if not settings.links:
            yield transport, None
            return
        impaired = await stack.enter_async_context(open_impaired_transport(transport, settings.links, seed))
        yield impaired, impaired
