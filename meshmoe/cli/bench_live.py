"""``meshmoe bench live``: a real mesh that serves while its experts move."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
import numpy as np
import trio
from numpy.typing import NDArray

from meshmoe.bench.live import Against, LiveRun, Phase, TextPoint, against_fresh, curve_table, live_worlds, phase_table
from meshmoe.bench.planner import model_shape
from meshmoe.cli.demo import PROMPTS
from meshmoe.cli.local_mesh import LocalMesh, open_local_mesh
from meshmoe.core.config import Topology, parse_topology
from meshmoe.core.errors import ConfigError, MeshmoeError
from meshmoe.core.ids import NodeId
from meshmoe.model.bundled import bundled_model_dir
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.node.data_files import read_data_file
from meshmoe.node.placement_driver import CALL_S
from meshmoe.node.preparing import prepare
from meshmoe.placement.world import ModelShape, graph_of

LOOK_S = 1.0
WINDOW_TOKENS = 32
BIN_S = 10.0
BESIDES_S_MAX = 300.0
"""For the start of the mesh, and for judging."""


@dataclass
class _Run:
    """A run under way."""

    mesh: LocalMesh
    topology: Topology
    max_tokens: int
    started_s: float
    domains: dict[NodeId, str]
    points: list[TextPoint] = field(default_factory=list)
    held: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    moves_s: list[float] = field(default_factory=list)

    def now_s(self) -> float:
        return trio.current_time() - self.started_s

    async def write(self, name: NodeId) -> None:
        """Ask one node for text after text."""
        seed = 0
        while True:
            seed += 1
            body = {
                "model": "default",
                "prompt": PROMPTS[self.domains[name]],
                "max_tokens": self.max_tokens,
                "temperature": 0.8,
                "seed": seed,
                "ignore_eos": True,
            }
            arrivals_s: list[float] = []
            report: dict[str, Any] = {}
            async for event in self.mesh.nodes[name].stream(body):
                report = event.get("meshmoe", report)
                for choice in event["choices"]:
                    arrivals_s += [trio.current_time()] * len(choice.get("meshmoe", {}).get("token_ids", ()))
            pauses_s = np.diff(arrivals_s).tolist()
            point = TextPoint(self.now_s(), name, report["rounds_per_token"], report["tokens_per_s"], pauses_s)
            self.points.append(point)

    async def watch(self) -> None:
        """Note every expert that becomes resident somewhere."""
        while True:
            for name in self.topology.nodes:
                try:
                    status = await self.mesh.nodes[name].status()
                except httpx.TransportError:
                    continue  # a busy box: the next look finds what has moved, too
                layers = status["coverage"]["holders_by_layer"]
                held = {(i, j) for i, layer in enumerate(layers) for j, holders in enumerate(layer) if 0 in holders}
                self.moves_s += [self.now_s()] * len(held - self.held.get(name, held))
                self.held[name] = held
            await trio.sleep(LOOK_S)

    async def settled(self) -> int:
        """How often plans have come to rest so far."""
        counts: list[int] = []
        for name in self.topology.nodes:
            status = await self.mesh.nodes[name].status()
            counts.append(status["placement"]["settled"])
        return max(counts)


@click.command()
@click.option("--topology", default="three-rooms", show_default=True, metavar="FILE", help="A file, or a name.")
@click.option("--model", type=click.Path(path_type=Path), metavar="DIR", help="Another model than the bundled one.")
@click.option("--seconds", type=click.FloatRange(10.0), default=120.0, show_default=True, help="Of either part.")
@click.option("--half-life", "half_life_s", type=float, default=60.0, show_default=True, help="Of the nodes' demand.")
@click.option("--max-tokens", type=click.IntRange(4), default=48, show_default=True, help="Of each text.")
@click.option("--drafts", default="off", show_default=True, help="As of join; without them rounds show places alone.")
@click.option("--json", "as_json", is_flag=True, help="All numbers, for programs.")
def live(
    topology: str,
    model: Path | None,
    seconds: float,
    half_life_s: float,
    max_tokens: int,
    drafts: str,
    as_json: bool,
) -> None:
    """Serve texts on a mesh of processes while experts move to where they are used.

    Every node is asked for texts of its own domain, from an even start; then for its neighbour's domain. Prints
    rounds a token over time, and how far the experts' places are from a fresh plan for what the nodes have recorded.
    Ends after five minutes and twice the seconds, come what may.
    """
    parsed = parse_topology(*read_data_file("topology", topology, "--topology"))
    if any(node.domain not in PROMPTS for node in parsed.nodes.values()):
        raise ConfigError(f"{parsed.name}: every node needs a domain: {', '.join(PROMPTS)}")
    shape = model_shape(Checkpoint.open(model or bundled_model_dir()))
    flags = ("--half-life", str(half_life_s), "--drafts", drafts)
    try:
        run = trio.run(_live, parsed, topology, model, shape, seconds, flags, max_tokens)
    except trio.TooSlowError:
        raise MeshmoeError(f"the mesh did not get through twice {seconds:g} s in time: this box is too busy") from None
    if as_json:
        sys.stdout.write(msgspec.json.encode(run).decode() + "\n")
        return
    click.echo(curve_table(run, BIN_S))
    click.echo("\n" + phase_table(run.phases))


async def _live(
    topology: Topology,
    topology_name: str,
    model: Path | None,
    shape: ModelShape,
    seconds: float,
    flags: tuple[str, ...],
    max_tokens: int,
) -> LiveRun:
    own = ("--model", str(model)) if model is not None else ()
    files = tempfile.TemporaryDirectory(prefix="meshmoe-", ignore_cleanup_errors=True)
    with files as directory, trio.fail_after(BESIDES_S_MAX + 2 * seconds):
        async with open_local_mesh(Path(directory)) as mesh:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(prepare)
                await mesh.start_topology(topology, topology_name, flags, own)
            domains = {name: node.domain or "" for name, node in topology.nodes.items()}
            run = _Run(mesh, topology, max_tokens, trio.current_time(), domains)
            phases = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run.watch)
                for name in topology.nodes:
                    nursery.start_soon(run.write, name)
                for part in ("own domain", "neighbour's domain"):
                    phases.append(await _part(run, part, seconds, shape))
                    names = list(topology.nodes)
                    turned = {name: run.domains[names[(i + 1) % len(names)]] for i, name in enumerate(names)}
                    run.domains.update(turned)
                nursery.cancel_scope.cancel()
            return LiveRun(run.points, phases)


async def _part(run: _Run, name: str, seconds: float, shape: ModelShape) -> Phase:
    begin_s, settled = run.now_s(), await run.settled()
    await trio.sleep(seconds)
    moves_s = [at_s - begin_s for at_s in run.moves_s if at_s >= begin_s]
    return Phase(
        name,
        begin_s,
        run.now_s(),
        await run.settled() - settled,
        len(moves_s),
        (min(moves_s, default=0.0), max(moves_s, default=0.0)),
        await _against(run, shape),
    )


async def _against(run: _Run, shape: ModelShape) -> Against | None:
    """Where experts stand now against a fresh plan for what the nodes have recorded."""
    windows: dict[NodeId, NDArray[np.integer]] = {}
    capacity: dict[NodeId, int] = {}
    holders = np.zeros((len(run.topology.nodes), shape.layers, shape.experts), bool)
    for i, name in enumerate(run.topology.nodes):
        node = run.mesh.nodes[name]
        async with node.client() as client:
            answer = await client.get(f"/mesh/trace?window={WINDOW_TOKENS}")
        if answer.status_code != 200:
            return None
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as archive:
            windows[name] = archive[archive.files[0]]
        status = await node.status()
        capacity[name] = _usable(status, shape)
        for layer, experts in enumerate(status["coverage"]["holders_by_layer"]):
            for index, who in enumerate(experts):
                holders[i, layer, index] = 0 in who
    if min(map(len, windows.values())) < 2:
        return None
    worlds = live_worlds(shape, graph_of(run.topology), capacity, windows, CALL_S)
    return await trio.to_thread.run_sync(against_fresh, *worlds, holders)


def _usable(status: Mapping[str, Any], shape: ModelShape) -> int:
    """What a node's plan may use: a place stays free where it cannot hold everything."""
    capacity_bytes = int(status["peers"][0]["capacity_bytes"])
    return capacity_bytes if capacity_bytes >= shape.total_bytes else capacity_bytes - int(shape.expert_bytes.max())
