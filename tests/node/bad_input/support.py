"""A mesh to join badly, and what a failing command must say."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from meshmoe.api.server import serve_api
from meshmoe.core.ids import NodeId
from meshmoe.core.token import JoinToken, Ticket, parse_peer
from meshmoe.node.node import Node
from meshmoe.node.settings import NodeSettings

BOUND_S = 90.0
"""For any of these commands to end; on an idle machine each takes less than a second."""


Fails = Callable[..., str]


@dataclass
class Models:
    """Checkpoint directories."""

    good: Path
    other: Path
    dense: Path


@dataclass
class Mesh:
    """Two nodes, ``first`` and ``second``, in a thread of their own."""

    directory: Path
    model: Path
    address: str = ""
    word: str = ""
    socket_path: Path = Path()
    nodes: list[Node] = field(default_factory=list)
    problem: BaseException | None = None
    ready: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            trio.run(self._live)
        except BaseException as error:
            self.problem = error
        finally:
            self.ready.set()

    async def _live(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            first = await self._start(nursery, "first")
            assert first.parts is not None
            endpoints = first.parts.endpoints
            self.address = endpoints.address()
            self.word = first.join_word()
            await self._start(nursery, "second", (parse_peer(self.word),))
            self.socket_path = self.directory / "first.sock"
            await nursery.start(serve_api, first, self.socket_path)
            self.ready.set()

    async def _start(self, nursery: trio.Nursery, name: str, peers: Any = ()) -> Node:
        settings = NodeSettings(
            node=NodeId(name),
            peers=peers,
            listen=("127.0.0.1", 0),
            model=self.model,
            socket_path=self.directory / f"{name}.sock",
            state_dir=self.directory / f"{name}-state",
            cache_dir=self.directory / "cache",
            seed=1,
        )
        node = Node(settings)
        self.nodes.append(node)
        nursery.start_soon(node.run)
        with trio.fail_after(BOUND_S):
            await node.ready.wait()
        return node

    def others_of_first(self) -> dict[str, str]:
        """What ``first`` thinks of the other nodes."""
        status = trio.from_thread.run_sync(self.nodes[0].status, trio_token=self._token)
        return {peer.node: peer.state for peer in status.peers if not peer.is_self}

    def stop(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._scope.cancel)


@contextlib.contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Interrupt the command, as a user would, when it takes too long; it then fails with another exit code."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, seconds, 2.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def word_for(port: int) -> str:
    """A token that is right in form, for whatever listens there."""
    return JoinToken([("127.0.0.1", port)], bytes(range(32)), Ticket(bytes(8), 0, bytes(16))).encode()


def the_line(stderr: str, exit_code: int | None, expected_code: int) -> str:
    """The one line that says what went wrong; log lines and steps may stand before it."""
    assert exit_code == expected_code, stderr
    assert "Traceback" not in stderr
    *before, line = stderr.splitlines()
    assert not [text for text in before if text.startswith("meshmoe: ")], stderr
    assert line.startswith("meshmoe: ")
    assert "internal error" not in line
    return line.removeprefix("meshmoe: ")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port: int = closed.getsockname()[1]
        return port


def three_free_ports() -> int:
    """The first of three in a row, below those that the kernel gives to others meanwhile."""
    for first in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + 3):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise AssertionError("no three ports in a row are free")
