"""A topology's links as network namespaces, for whoever starts programs in them."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
import psutil

from meshmoe.bench_engine.wires.netns import exec_prefix, require_namespaces
from meshmoe.bench_engine.wires.plan import UP, WiresPlan
from meshmoe.bench_engine.wires.spaces import NODES_MAX, host, remove_spaces, space_name
from meshmoe.core.config import Topology
from meshmoe.core.errors import ConfigError, MeshmoeError
from meshmoe.core.ids import NodeId

if TYPE_CHECKING:
    from meshmoe.bench_engine.wires.figures import WireFigures

START_S_MAX = 120.0
"""Compiling, at a machine's first start, takes most of it."""

_STOP_S_MAX = 10.0


class WiresError(MeshmoeError):
    """The process that forwards packets has failed; the message has its last words."""


@dataclass(frozen=True)
class Wires:
    """Made by `open_wires`.

    Attributes:
        owner: The forwarding process.
        numbers: Of the nodes.
        tally_path: What it counts up in.
        started_s: Of a processor, that its start took.
    """

    owner: int
    numbers: dict[NodeId, int]
    tally_path: Path
    started_s: float

    def host(self, node: NodeId) -> str:
        """The address of a node in its namespace."""
        return host(self.numbers[node])

    def namespace(self, node: NodeId) -> str:
        """The name of a node's namespace."""
        return space_name(self.owner, self.numbers[node])

    def prefix(self, node: NodeId) -> list[str]:
        """What a command is preceded by to run in a node's namespace."""
        return exec_prefix(self.namespace(node))

    def figures(self) -> WireFigures:
        """What has been forwarded until now, how late, and what it took.

        Raises:
            WiresError: Nothing is forwarded any more.
        """
        from meshmoe.bench_engine.wires.figures import read_figures  # imports numba

        return read_figures(self.tally_path, _processor_s(self.owner) - self.started_s)


@contextmanager
def open_wires(topology: Topology, flag: str = "--links namespaces") -> Iterator[Wires]:
    """Namespaces for a topology's nodes with its links between them, gone when the block ends.

    Args:
        topology: Pairs without a link do not reach each other.
        flag: What asked for them, for messages.

    Raises:
        ConfigError: This user or this machine cannot make them.
        WiresError: They could not be made.
    """
    require_namespaces(flag)
    if len(topology.nodes) > NODES_MAX:
        raise ConfigError(f"{flag}: {topology.name} has {len(topology.nodes)} nodes: {NODES_MAX} are possible")
    numbers = {name: number for number, name in enumerate(topology.nodes)}
    with tempfile.TemporaryDirectory(prefix="mm-", ignore_cleanup_errors=True) as directory:
        tally_path, log_path = Path(directory, "tally"), Path(directory, "log")
        links = [(numbers[a], numbers[b], shape) for (a, b), shape in topology.links.items()]
        plan = msgspec.json.encode(WiresPlan(len(numbers), links, str(tally_path))).decode()
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "meshmoe.bench_engine.wires.process", plan],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the one who started it, who then stops it
            )
        try:
            assert process.stdout is not None
            _wait_up(process.stdout, log_path)
            yield Wires(process.pid, numbers, tally_path, _processor_s(process.pid))
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            remove_spaces(process.pid)  # where it was killed, itself or just now


def _processor_s(process: int) -> float:
    try:
        times = psutil.Process(process).cpu_times()
        ended = psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        ended = True
    if ended:
        raise WiresError("the process that forwards the links' packets has ended")
    return float(times.user + times.system)


def _wait_up(said: IO[bytes], log_path: Path) -> None:
    readable, _, _ = select.select([said], [], [], START_S_MAX)
    if readable and said.readline().strip() == UP.encode():
        return
    lines = log_path.read_text(errors="replace").strip().splitlines()
    what = lines[-1] if lines else "it said nothing" if readable else f"it is not up after {START_S_MAX:.0f} s"
    raise WiresError(f"the links' namespaces could not be made: {what}")
