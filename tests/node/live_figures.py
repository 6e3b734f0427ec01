"""``python -m tests.node.live_figures [SECONDS]``: what `meshmoe bench live` measures, with all nodes in one process.

For machines on which processes would wait for each other's cores, or without the API's packages: whole nodes, real
sockets, emulated links, one event loop. Nodes share an interpreter, so tokens a second are not those of boxes.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import trio

from meshmoe.bench.live import LiveRun, Phase, TextPoint, against_fresh, curve_table, live_worlds, phase_table
from meshmoe.bench.planner import model_shape
from meshmoe.core.config import parse_topology
from meshmoe.core.ids import NodeId
from meshmoe.engine.drafts.mode import OFF
from meshmoe.engine.request import FinishEvent, GenerationRequest, SamplingParams, TokenEvent
from meshmoe.model.bundled import bundled_model_dir
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.node.data_files import read_data_file
from meshmoe.node.placement_driver import CALL_S
from meshmoe.node.preparing import prepare
from meshmoe.placement.world import graph_of
from tests.node.support import open_test_mesh

TEXTS = {
    "prose": "The server process is started by the administrator. When a client connects, it",
    "python": "def read_lines(path):\n    with open(path) as file:\n        for line in",
    "dictionary": "lantern, noun: a lamp with",
}


class Run:
    def __init__(self, mesh, domains):
        self.mesh, self.domains, self.started_s = mesh, domains, trio.current_time()
        self.points, self.moves_s, self.held = [], [], {}

    def now_s(self):
        return trio.current_time() - self.started_s

    async def write(self, node):
        name, seed = node.settings.node, 0
        while True:
            seed += 1
            ids = tuple(node.tokenizer(TEXTS[self.domains[name]]).input_ids)
            sampling = SamplingParams(max_tokens=48, ignore_eos=True, temperature=0.8, seed=seed)
            began_s, arrivals_s = trio.current_time(), []
            async with node.generate(GenerationRequest(prompt_ids=ids, sampling=sampling)) as events:
                async for event in events:
                    if isinstance(event, TokenEvent):
                        arrivals_s.append(trio.current_time())
                    elif isinstance(event, FinishEvent):
                        rate = event.stats.completion_tokens / (trio.current_time() - began_s)
                        pauses_s = np.diff(arrivals_s).tolist()
                        self.points.append(TextPoint(self.now_s(), name, event.stats.rounds_per_token, rate, pauses_s))

    async def watch(self):
        while True:
            for node in self.mesh.nodes:
                held = set(node.pool.experts())
                self.moves_s += [self.now_s()] * len(held - self.held.get(node.settings.node, held))
                self.held[node.settings.node] = held
            await trio.sleep(0.5)

    def settled(self):
        return max(node.parts.custody.settled for node in self.mesh.nodes)


def against(run, topology, shape):
    nodes = run.mesh.nodes
    windows = {node.settings.node: node.routing(32) for node in nodes}
    place = int(shape.expert_bytes.max())
    capacity = {node.settings.node: node.pool.capacity_bytes - place for node in nodes}
    holders = np.zeros((len(nodes), shape.layers, shape.experts), bool)
    for i, node in enumerate(nodes):
        for expert in node.pool.experts():
            holders[i, expert.layer, expert.index] = True
    return against_fresh(*live_worlds(shape, graph_of(topology), capacity, windows, CALL_S), holders)


async def measure(seconds, half_life_s):
    topology = parse_topology(*read_data_file("topology", "three-rooms", "topology"))
    shape = model_shape(Checkpoint.open(bundled_model_dir()))
    await prepare()
    with tempfile.TemporaryDirectory() as directory:
        async with open_test_mesh(Path(directory)) as mesh:
            for name in topology.nodes:
                changes = {"links": topology.links_of(name), "demand_half_life_s": half_life_s, "drafts": OFF}
                await mesh.add(name, bundled_model_dir(), 0.45, **changes)
            await mesh.settle()
            run = Run(mesh, {name: node.domain for name, node in topology.nodes.items()})
            phases = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run.watch)
                for node in mesh.nodes:
                    nursery.start_soon(run.write, node)
                for part in ("own domain", "neighbour's domain"):
                    begin_s, settled = run.now_s(), run.settled()
                    await trio.sleep(seconds)
                    moves_s = [at_s - begin_s for at_s in run.moves_s if at_s >= begin_s]
                    between = min(moves_s, default=0.0), max(moves_s, default=0.0)
                    result = await trio.to_thread.run_sync(against, run, topology, shape)
                    settled = run.settled() - settled
                    phases.append(Phase(part, begin_s, run.now_s(), settled, len(moves_s), between, result))
                    names = [NodeId(name) for name in topology.nodes]
                    run.domains = {name: run.domains[names[(i + 1) % len(names)]] for i, name in enumerate(names)}
                nursery.cancel_scope.cancel()
            decision_ms = max(1e3 * node.parts.placement.thought_s for node in mesh.nodes)
            return LiveRun(run.points, phases), decision_ms


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    half_life_s = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    run, decision_ms = trio.run(measure, seconds, half_life_s)
    sys.stdout.write(
        curve_table(run, 10.0) + "\n\n" + phase_table(run.phases) + f"\n\nlongest decision {decision_ms:.0f} ms\n"
    )


if __name__ == "__main__":
    main()
