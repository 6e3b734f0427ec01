"""Contestants of a serving bench: meshes that it starts, and servers that run already, measured in turns."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import msgspec
import psutil

from meshmoe.bench_engine.load import Outcome
from meshmoe.bench_engine.load_figures import LoadFigure, medians, summarise
from meshmoe.bench_engine.openai_stream import Server, ServerError, ask, node_server, parse_server
from meshmoe.bench_engine.turns import Progress
from meshmoe.bench_engine.wires.wires import Wires
from meshmoe.cli.local_mesh import START_TIMEOUT_S, LocalNode, open_local_mesh
from meshmoe.cli.rivals import Rivals, open_rival
from meshmoe.core.config import Topology
from meshmoe.core.ids import NodeId

READ_BYTES_PER_S = 200e6
"""Less than what nodes that start together read of a model, also where they fetch it from each other."""


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison.

    Attributes:
        name: In tables.
        servers: To put load on: the nodes of a mesh in the topology's order, or servers of another kind.
        nodes: The same as processes of ours; empty for servers of another kind.
        pids: Of those servers of another kind that were started for this, with their workers.
    """

    name: str
    servers: tuple[Server, ...]
    nodes: tuple[LocalNode, ...] = ()
    pids: tuple[int, ...] = ()

    def processor_s(self) -> float | None:
        """What its processes have taken of processors until now; None of those that somebody else has started."""
        pids = [*self.pids, *(node.pid for node in self.nodes)]
        try:
            times = [psutil.Process(pid).cpu_times() for pid in pids]
        except psutil.Error:  # one has died, which its answers tell
            return None
        return sum([float(one.user + one.system) for one in times]) if pids else None

    async def loop_late_p99_ms(self) -> float | None:
        """Of the worst node, in the last half minute."""
        if not self.nodes:
            return None
        return max([float((await node.status())["loop_late_p99_ms"]) for node in self.nodes])

    async def count_tokens(self, text: str) -> int:
        """How many tokens a text has for the first server."""
        answer = await ask(self.servers[0], text, 1)
        if answer.error:
            raise ServerError(f"{self.name}: {answer.error}")
        if not answer.prompt_tokens:
            raise ServerError(f"{self.name} does not say how many tokens a prompt has (usage.prompt_tokens)")
        return answer.prompt_tokens


def drafting_ways(contestants: Sequence[Contestant], modes: Sequence[str]) -> list[Contestant]:
    """Every mesh once for each way of drafting: the same processes, experts and links for all of them.

    Args:
        contestants: Servers of another kind stay what they are.
        modes: As `meshmoe join --drafts` takes them; without any, contestants stay what they are.
    """
    found: list[Contestant] = []
    for one in contestants:
        for mode in modes if one.nodes else ():
            servers = tuple(msgspec.structs.replace(server, drafts=mode) for server in one.servers)
            found.append(Contestant(f"{one.name}, drafts {mode}", servers, one.nodes))
        if not (one.nodes and modes):
            found.append(one)
    return found


@dataclass(frozen=True)
class Wanted:
    """What takes part.

    Attributes:
        model: A checkpoint; None for the bundled model.
        join: Further flags of ``meshmoe join`` for all nodes.
        compare: Sets of flags; for each of them another mesh takes part, with these flags besides.
        against: Addresses of other servers.
        on_every_disk: Whether each node has the checkpoint, or only the first.
        settle_s: See `LocalMesh.start_topology`.
        rivals: Other servers to start.
    """

    model: Path | None
    join: str = ""
    compare: Sequence[str] = ()
    against: Sequence[str] = ()
    on_every_disk: bool = False
    settle_s: float | None = None
    rivals: Rivals = field(default_factory=Rivals)

    @property
    def start_timeout_s(self) -> float:
        """For the nodes of a mesh to serve: they read all of a model, for its digest, and then their parts of it."""
        files = self.model.glob("*.safetensors") if self.model is not None else ()
        return START_TIMEOUT_S + sum(file.stat().st_size for file in files) / READ_BYTES_PER_S


@asynccontextmanager
async def open_contestants(
    wanted: Wanted,
    topology: Topology | None,
    topology_name: str,
    progress: Progress,
    wires: Wires | None = None,
) -> AsyncIterator[list[Contestant]]:
    """Start what has to be started and wait until all of it serves.

    Args:
        wanted: What takes part; ours comes first.
        topology: Of each mesh; None for a single node that holds everything.
        topology_name: The file, for the nodes.
        progress: Told what is going on.
        wires: Namespaces with the topology's links, for the nodes of all meshes.
    """
    async with AsyncExitStack() as stack:
        contestants = []
        for extra in ("", *wanted.compare):
            name = f"meshmoe {extra}".strip()
            progress(f"starting {name}")
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="mm-", ignore_cleanup_errors=True))
            mesh = await stack.enter_async_context(open_local_mesh(Path(directory), wanted.start_timeout_s))
            flags = [*shlex.split(wanted.join), *shlex.split(extra)]
            own = ["--model", str(wanted.model)] if wanted.model is not None else []
            if topology is not None:
                every = own if wanted.on_every_disk else []
                flags += every
                settled = await mesh.start_topology(
                    topology, topology_name, flags, [] if every else own, wanted.settle_s, wires
                )
                progress(f"{name} serves" + ("" if settled else ", and experts still move"))
            else:
                mesh.add("bench", "--capacity", "100%", *flags).start(*own)
                await mesh.wait_serving()
            nodes = tuple(mesh.nodes.values())
            servers = tuple(node_server(node.name, node.socket_path) for node in nodes)
            contestants.append(Contestant(name, servers, nodes))
        contestants += [Contestant(url, (parse_server(url),)) for url in wanted.against]
        for number in range(len(wanted.rivals.commands)):
            assert topology is not None and wires is not None, "checked with the flags"
            progress(f"starting {wanted.rivals.commands[number]}")
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="mm-", ignore_cleanup_errors=True))
            started = open_rival(wanted.rivals, number, topology, wires, Path(directory))
            rival = await stack.enter_async_context(started)
            contestants.append(Contestant(rival.name, (rival.server,), pids=tuple(rival.pids)))
        yield contestants


async def in_turns(
    contestants: Sequence[Contestant],
    turns: int,
    load: Callable[[Contestant, int], Awaitable[Outcome]],
    progress: Progress,
) -> dict[str, LoadFigure]:
    """Put a load on every contestant, one after the other, and again; one turn goes before and does not count.

    Args:
        contestants: Each is at rest while another one is measured.
        turns: Of which the medians are taken.
        load: Gets the contestant and the number of the turn.
        progress: Told which turn it is.

    Raises:
        ServerError: A contestant answers nothing at all.
    """
    found: dict[str, list[LoadFigure]] = {contestant.name: [] for contestant in contestants}
    for turn in range(turns + 1):
        progress(f"turn {turn} of {turns}" if turn else "warming up")
        for contestant in contestants:
            before_s = contestant.processor_s()
            outcome = await load(contestant, turn)
            if not any(answer.arrivals_s for answer in outcome.answers):
                raise ServerError(f"{contestant.name}: {outcome.answers[0].error or 'no tokens came'}")
            if turn:
                after_s = contestant.processor_s()
                took_s = after_s - before_s if after_s is not None and before_s is not None else None
                found[contestant.name].append(summarise(outcome, await contestant.loop_late_p99_ms(), took_s))
    return {name: medians(figures) for name, figures in found.items()}


async def mean_rtt_ms(contestant: Contestant, topology: Topology) -> float:
    """Round trip of the topology's links, weighted by the expert calls that went over them."""
    weighted: list[tuple[float, float]] = []
    for node in contestant.nodes:
        links = topology.links_of(NodeId(node.name))
        peers: Sequence[Mapping[str, object]] = (await node.status())["peers"]
        for peer in peers:
            link, calls = links.get(NodeId(str(peer["node"]))), peer["expert_calls"]
            if link is not None and isinstance(calls, int) and calls:
                weighted.append((1e3 * link.rtt_s, calls))
    if not weighted:
        return 1e3 * mean([shape.rtt_s for shape in topology.links.values()] or [0.0])
    return sum(rtt_ms * calls for rtt_ms, calls in weighted) / sum(calls for _, calls in weighted)
