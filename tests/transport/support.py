"""What the transport's tests share: a runner for async tests, and the transports under one interface."""

from __future__ import annotations

import functools
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId, node_id
from meshmoe.core.links import LinkShape
from meshmoe.transport.base import Parcel, QueueFullError, Transport
from meshmoe.transport.impaired import open_impaired_transport
from meshmoe.transport.memory import MemoryHub
from meshmoe.transport.zmq_transport import open_zmq_transport

A, B, C = node_id("a"), node_id("b"), node_id("c")
GIGABIT = LinkShape(rtt_s=0.3e-3, rate_bytes_per_s=125e6, jitter_s=0.1e-3)


def trio_test(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test under trio with a deadline; fixtures come as keywords as usual."""

    @functools.wraps(function)
    def run(**fixtures: Any) -> None:
        async def main() -> None:
            with trio.fail_after(60):  # only so that nothing hangs; the waits within have bounds of their own
                await function(**fixtures)

        trio.run(main)

    return run


class Mesh:
    """Opens transports of one kind that can reach each other."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._hub = MemoryHub()

    def open(self, node: NodeId, generation: int = 1, port: int = 0) -> AbstractAsyncContextManager[Transport]:
        if self.kind == "zmq":
            return open_zmq_transport(node, generation, "127.0.0.1", port)
        if self.kind == "memory":
            return self._hub.attach(node, generation, port)
        return self._open_impaired(node, generation, port)

    @asynccontextmanager
    async def _open_impaired(self, node, generation, port):
        links = dict.fromkeys((A, B, C), GIGABIT)
        async with (
            self._hub.attach(node, generation, port) as inner,
            open_impaired_transport(inner, links, seed=7) as transport,
        ):
            yield transport

    @asynccontextmanager
    async def pair(self):
        async with self.open(A) as a, self.open(B) as b:
            a.connect(B, b.endpoints)
            b.connect(A, a.endpoints)
            yield a, b


def contents(parcel: Parcel) -> list[bytes]:
    return [bytes(frame) for frame in parcel.frames]


def free_port(count: int = 3) -> int:
    """The first of ``count`` ports in a row that nobody listens on, outside the ephemeral range."""
    while True:
        first = random.randrange(20_000, 30_000)
        try:
            for port in range(first, first + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return first


async def fill(transport, peer, lane, frames, quiet_s=0.1):
    """Post until the queue is full and stays so; returns how many parcels that took."""
    posted = 0
    while True:
        try:
            transport.post(peer, lane, [b"%d" % posted, *frames])
            posted += 1
        except QueueFullError:
            with trio.move_on_after(quiet_s):
                await transport.send(peer, lane, [b"%d" % posted, *frames])
                posted += 1
                continue
            return posted


async def receive_all(transport: Transport, lane: Lane, count: int) -> list[list[bytes]]:
    return [contents(await transport.receive(lane)) for _ in range(count)]


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for what comes about at once where the machine has time; the limit is only so that nothing hangs."""
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.005)
