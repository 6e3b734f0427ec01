"""A whole mesh on this box: every node of a topology file as a real process, on loopback, with emulated links.

The demo, the benchmarks and the tests of the mesh use it. Processes die with whoever started them, also when that one
is killed, and leave nothing behind but their logs.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import trio

from meshmoe.bench_engine.wires.wires import Wires
from meshmoe.core.config import Topology
from meshmoe.core.errors import MeshmoeError
from meshmoe.core.ids import NodeId

START_TIMEOUT_S = 300.0
"""For one node to serve its socket; importing torch takes a slow box most of it."""

STOP_TIMEOUT_S = 10.0


class NodeFailedError(MeshmoeError):
    """A process of the local mesh ended or did not come up; the message has its last words."""


class Running(Protocol):
    """A process that was started: the part of `subprocess.Popen` that is needed."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for it to end; returns the exit code."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send a signal if it still runs."""
        ...


class LocalNode:
    """One node process.

    Attributes:
        name: Of the node.
        directory: Its socket, state and log lie here.
        socket_path: Its local socket.
    """

    def __init__(self, name: str, directory: Path, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.directory = directory
        self.socket_path = directory / "node.sock"
        self.log_path = directory / "node.log"
        self.prefix: list[str] = []
        """What the command is preceded by."""
        self._arguments = arguments
        self._environment = dict(environment)
        self._process: Running | None = None

    def listen(self, address: str) -> None:
        """Listen there from the next start on."""
        self._arguments += ["--listen", address]

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self, *extra: str, stdin: int = subprocess.DEVNULL) -> None:
        """Start the process (again); ``extra`` are further flags of ``meshmoe join``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        arguments = [
            *("join", "--name", self.name, "--socket", str(self.socket_path)),
            *("--state", str(self.directory / "state"), "--log-format", "human"),
            *self._arguments,
            *extra,
        ]
        self._process = launch(self.prefix, arguments, {**os.environ, **self._environment}, self.log_path, stdin)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def wait(self, timeout_s: float) -> int | None:
        """Wait for the process to end; None if it does not in time."""
        assert self._process is not None
        with trio.move_on_after(timeout_s):
            return await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
        return self._process.poll()

    async def stop(self) -> None:
        """End the process, by force if it must be."""
        if self._process is None:
            return
        with trio.CancelScope(shield=True):
            self.send_signal(signal.SIGCONT)
            self.send_signal(signal.SIGKILL)
            await self.wait(STOP_TIMEOUT_S)

    def client(self, timeout_s: float = 120.0) -> httpx.AsyncClient:
        """An HTTP client on the node's socket."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket_path))
        return httpx.AsyncClient(transport=transport, base_url="http://node", timeout=timeout_s)

    async def status(self) -> dict[str, Any]:
        """What ``meshmoe status --json`` would print."""
        async with self.client(10.0) as client:
            answer = await client.get("/mesh/status")
            answer.raise_for_status()
            status: dict[str, Any] = answer.json()
            return status

    async def wait_status(
        self, condition: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = START_TIMEOUT_S
    ) -> dict[str, Any]:
        """Poll the status until a condition holds.

        Raises:
            NodeFailedError: The process ended, or time is up.
        """
        status: dict[str, Any] = {}
        with trio.move_on_after(timeout_s):
            while True:
                if self.exit_code is not None:
                    raise NodeFailedError(f"node {self.name} ended with code {self.exit_code}: {self.last_words()}")
                try:
                    status = await self.status()
                    if condition(status):
                        return status
                except httpx.TransportError:
                    pass
                await trio.sleep(0.05)
        reason = status.get("serving", {}).get("reason", "") or status.get("phase", "its socket does not answer")
        raise NodeFailedError(
            f"node {self.name} is not {what} after {timeout_s:.0f} s: {reason}; log: {self.last_words()}"
        )

    def last_words(self) -> str:
        """The last line of the log."""
        lines = self.log_path.read_text(errors="replace").strip().splitlines() if self.log_path.exists() else []
        return lines[-1] if lines else "(its log is empty)"

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One completion, not streamed; token ids are in ``choices[0].meshmoe.token_ids``."""
        async with self.client() as client:
            answer = await client.post("/v1/completions", json={**body, "meshmoe": {"token_ids": True}})
            if answer.status_code != 200:
                raise NodeFailedError(f"node {self.name}: {answer.json()['error']['message']}")
            result: dict[str, Any] = answer.json()
            return result

    async def stream(self, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """One completion, streamed: its chunks."""
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}, "meshmoe": {"token_ids": True}}
        async with self.client() as client, client.stream("POST", "/v1/completions", json=asked) as answer:
            if answer.status_code != 200:
                await answer.aread()
                raise NodeFailedError(f"node {self.name}: {answer.json()['error']['message']}")
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise NodeFailedError(f"node {self.name}: {event['error']['message']}")
                    yield event


class LocalMesh:
    """Node processes by name; made by `open_local_mesh`."""

    def __init__(self, directory: Path, start_timeout_s: float) -> None:
        self.directory = directory
        self.start_timeout_s = start_timeout_s
        self.nodes: dict[NodeId, LocalNode] = {}

    def add(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> LocalNode:
        """A node that is not started yet, listening on free loopback ports."""
        own = {"MESHMOE_SOCKET": "", **(environment or {})}
        node = LocalNode(name, self.directory / name, ["--listen", "127.0.0.1:0", *arguments], own)
        self.nodes[NodeId(name)] = node
        return node

    async def start_topology(
        self,
        topology: Topology,
        topology_name: str,
        flags: Sequence[str] = (),
        first_flags: Sequence[str] = (),
        settle_s: float | None = None,
        wires: Wires | None = None,
    ) -> bool:
        """Start every node of a topology over its emulated links, and wait until they serve and nothing moves.

        Args:
            topology: Who takes part, with what capacity.
            topology_name: The file, for the nodes.
            flags: Further flags of ``meshmoe join``, of all nodes.
            first_flags: Further flags of the first node, which begins the mesh.
            settle_s: For how long to wait at most until nothing moves; None for as long as a start may take.
            wires: Namespaces with the topology's links, in which nodes run then, instead of emulating links themselves.

        Returns:
            Whether nothing moves; without ``settle_s`` it raises if something does.
        """
        for name, node in topology.nodes.items():
            arguments = ["--links", topology_name] if wires is None else ["--no-discovery"]
            arguments += ["--profile", node.profile] if node.profile is not None else []
            arguments += ["--capacity", node.capacity] if node.capacity is not None else []
            arguments += ["--threads", str(node.threads)] if node.threads is not None else []
            added = self.add(name, *arguments, *flags)
            if wires is not None:
                added.prefix = wires.prefix(name)
                added.listen(f"{wires.host(name)}:0")
        first, *others = topology.nodes
        self.nodes[first].start(*first_flags)
        address = await self.join_word(first)
        for name in others:
            self.nodes[name].start("--peer", address)
        await self.wait_serving(*topology.nodes)
        try:
            await self.wait_settled(*topology.nodes, timeout_s=settle_s)
        except NodeFailedError:
            if settle_s is None:
                raise
            return False
        return True

    async def join_word(self, name: str) -> str:
        """What another node's ``--peer`` takes to join through this one, as soon as it can."""
        node = self.nodes[NodeId(name)]
        status = await node.wait_status(lambda s: bool(s["model"] and s["peers"]), "listening", self.start_timeout_s)
        word: str = status["join_command"].split()[-1]
        return word

    async def wait_serving(self, *names: str, timeout_s: float | None = None) -> None:
        """Wait until these nodes (all, if none is named) serve, see each other, and every expert has a holder."""
        nodes = [self.nodes[NodeId(name)] for name in names] or list(self.nodes.values())
        expected = {node.name for node in nodes}

        def met(status: dict[str, Any]) -> bool:
            alive = {peer["node"] for peer in status["peers"] if peer["state"] == "alive"}
            return bool(status["serving"]["ready"]) and expected <= alive

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.wait_status, met, "serving", timeout_s or self.start_timeout_s)

    async def wait_settled(self, *names: str, timeout_s: float | None = None) -> None:
        """Wait until all experts are in these nodes' custody, nothing moves, and all agree on who holds what."""
        nodes = [self.nodes[NodeId(name)] for name in names] or list(self.nodes.values())
        before, timeout_s = None, timeout_s or self.start_timeout_s
        with trio.move_on_after(timeout_s):
            while True:
                now = _settled_digest([await node.status() for node in nodes])
                if now is not None and now == before:
                    return
                before = now
                await trio.sleep(0.5)
        raise NodeFailedError(f"the mesh has not settled after {timeout_s:.0f} s")


def _settled_digest(statuses: list[dict[str, Any]]) -> str | None:
    """The digest of who holds what, where all nodes have the same, every expert is kept and nothing moves."""
    if not all(status["custody"] and status["coverage"] for status in statuses):
        return None
    kept = sum(status["custody"]["experts"] for status in statuses)
    moving = any(status["custody"]["intakes"] or status["custody"]["migrations"] for status in statuses)
    digests = {status["coverage"]["holder_map_digest"] for status in statuses}
    if moving or kept < statuses[0]["coverage"]["total"] or len(digests) != 1:
        return None
    digest: str = digests.pop()
    return digest


@asynccontextmanager
async def open_local_mesh(directory: Path, start_timeout_s: float = START_TIMEOUT_S) -> AsyncIterator[LocalMesh]:
    """A mesh without nodes; whatever is added and started is stopped when the context is left.

    Args:
        directory: For sockets (its path must be short), states and logs.
        start_timeout_s: For its nodes to serve.
    """
    mesh = LocalMesh(directory, start_timeout_s)
    try:
        yield mesh
    finally:
        async with trio.open_nursery() as nursery:
            for node in mesh.nodes.values():
                nursery.start_soon(node.stop)


def start_process(
    prefix: Sequence[str], arguments: Sequence[str], environment: Mapping[str, str], log_path: Path, stdin: int
) -> Running:
    """Start ``meshmoe``.

    Args:
        prefix: What the command is preceded by.
        arguments: Its arguments.
        environment: All of it.
        log_path: What it says is added there.
        stdin: A descriptor, or what `subprocess` has for none.
    """
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "meshmoe.cli.main", *arguments],
            stdin=stdin,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the one who started the mesh, who then stops the nodes
            preexec_fn=prepare,
        )


launch: Callable[[Sequence[str], Sequence[str], Mapping[str, str], Path, int], Running] = start_process
"""How nodes are started; tests have a way that imports less."""


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def prepare() -> None:
    """In the child: end with the parent, and let no SIGHUP end it before it listens to them."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
