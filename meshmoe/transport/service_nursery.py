"""A nursery for a context manager's own helpers, which its user need not know of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_service_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that is cancelled when the body ends, and does not wrap what the body raises in a group.

    trio's nursery turns a body's ``ValueError`` into a group with a ``ValueError``. That is right for a nursery one
    sees; behind ``open_zmq_transport`` it would surprise. A failure of a helper still comes as a group if the body
    fails, too.
    """
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        only = group.exceptions[0]
        context = only.__context__
        try:
            raise only
        finally:
            # Raising it here has set the group as its context; give it back its own.
            only.__context__ = context
