"""Another program beside ours in a bench's run: a server in one node's namespace, and workers of it in the others'."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from meshmoe.bench_engine.openai_stream import Server, ServerError, ask, open_stream
from meshmoe.bench_engine.wires.wires import Wires
from meshmoe.cli.local_mesh import prepare
from meshmoe.core.config import Topology
from meshmoe.core.errors import ConfigError
from meshmoe.core.ids import NodeId

START_S_MAX = 120.0
"""For a server to load its model and answer."""

_SERVER_PORT, _WORKER_PORT = 8080, 50052
"""Of the first server and its workers; the second ones have the next. Namespaces have their ports for themselves."""

_STOP_S_MAX = 3.0
_LOOK_S = 0.2


@dataclass(frozen=True)
class Rivals:
    """What is wanted.

    Attributes:
        commands: Of servers; ``{host}``, ``{port}`` and ``{workers}`` stand for where each one is to listen and for
            ``HOST:PORT,HOST:PORT`` of its workers.
        node: In whose namespace servers run; empty for the first one's.
        worker_command: Run in every other node's namespace for each server, with ``{host}`` and ``{port}``; empty for
            no workers.
    """

    commands: Sequence[str] = ()
    node: str = ""
    worker_command: str = ""

    def check(self, topology: Topology, wires: bool) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: One line that says what to do.
        """
        if not self.commands and (self.node or self.worker_command):
            raise ConfigError("--against-node and --worker-command go with --against-command")
        if self.commands and not wires:
            raise ConfigError("--against-command needs --links namespaces, to run in them")
        if self.node and self.node not in topology.nodes:
            names = ", ".join(topology.nodes)
            raise ConfigError(f"--against-node: {topology.name} has no node {self.node}: it has {names}")
        for command in (*self.commands, self.worker_command):
            try:
                shlex.split(command)
            except ValueError as error:
                raise ConfigError(f"--against-command: {command!r}: {error}") from None


@dataclass(frozen=True)
class Rival:
    """A server that runs, with its workers.

    Attributes:
        name: For tables.
        server: Where it is asked.
        pids: Of all its processes.
    """

    name: str
    server: Server
    pids: list[int] = field(default_factory=list)


def fill_in(command: str, **words: str) -> list[str]:
    """A command's words with ``{name}`` replaced by what it stands for; other braces stay."""
    found = []
    for word in shlex.split(command):
        for name, meant in words.items():
            word = word.replace(f"{{{name}}}", meant)
        found.append(word)
    return found


@asynccontextmanager
async def open_rival(
    wanted: Rivals, number: int, topology: Topology, wires: Wires, directory: Path
) -> AsyncIterator[Rival]:
    """Start one of the servers with workers of its own, and wait until it answers; all end with the block.

    Args:
        wanted: All of them.
        number: Which one.
        topology: Whose nodes the namespaces are of.
        wires: The namespaces.
        directory: For logs.

    Raises:
        ServerError: One does not come up; the message has its last words.
    """
    command = wanted.commands[number]
    home = NodeId(wanted.node) if wanted.node else next(iter(topology.nodes))
    others = [name for name in topology.nodes if name != home] if wanted.worker_command else []
    worker_port, port = str(_WORKER_PORT + number), _SERVER_PORT + number
    async with AsyncExitStack() as stack:
        processes = []
        for name in others:
            words = fill_in(wanted.worker_command, host=wires.host(name), port=worker_port)
            worker = _Process(f"{Path(words[0]).name} of {name}", [*wires.prefix(name), *words], directory)
            await stack.enter_async_context(worker.running())
            listening = Server(worker.name, wires.host(name), int(worker_port), network=wires.namespace(name))
            await worker.wait(partial(_accepts, listening))
            processes.append(worker)
        workers = ",".join(f"{wires.host(name)}:{worker_port}" for name in others)
        words = fill_in(command, host=wires.host(home), port=str(port), workers=workers)
        title = Path(words[0]).name + (f" {number + 1}" if number else "")
        process = _Process(title, [*wires.prefix(home), *words], directory)
        await stack.enter_async_context(process.running())
        server = Server(title, wires.host(home), port, network=wires.namespace(home))
        await process.wait(partial(_answers, server))
        yield Rival(title, server, [one.pid for one in (*processes, process)])


async def _accepts(server: Server) -> str:
    try:
        await (await open_stream(server)).aclose()
    except OSError as error:
        return str(error)
    return ""


async def _answers(server: Server) -> str:
    return (await ask(server, "a", 1)).error


class _Process:
    def __init__(self, name: str, words: list[str], directory: Path) -> None:
        self.name = name
        self._words = words
        self._log_path = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - nothing else is going on while it starts
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=prepare,
            )
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._stop()

    async def _stop(self) -> None:
        assert self._process is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):  # what it has started ends with it
                os.killpg(self.pid, number)
            with trio.move_on_after(_STOP_S_MAX):
                await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)

    async def wait(self, look: Callable[[], Awaitable[str]]) -> None:
        """Wait until ``look`` finds nothing wrong any more."""
        wrong = "nothing yet"
        with trio.move_on_after(START_S_MAX):
            while True:
                assert self._process is not None
                if (code := self._process.poll()) is not None:
                    raise ServerError(f"{self.name} ended with code {code}: {self._last_words()}")
                wrong = await look()
                if not wrong:
                    return
                await trio.sleep(_LOOK_S)
        raise ServerError(
            f"{self.name} does not answer after {START_S_MAX:.0f} s: {wrong}; its log: {self._last_words()}"
        )

    def _last_words(self) -> str:
        lines = self._log_path.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "(its log is empty)"
