"""The setting of DanceMoE's experiment (arXiv 2508.12851), as far as it is known, simulated.

Known: three servers with 1, 1 and 2 devices, 500 Mbit/s, one task a server, Poisson arrivals every 10 or 20 s, Mixtral
with about 1.13 and DeepSeek-V2-Lite with about 1.40 times the experts' memory. Not known to us: round trip, device
speed, cost of a call, lengths, and the tasks' routing. These are chosen here, not tuned to any result; how alike tasks
are is swept.

Beside it a sweep: links of 100 to 1,000 Mbit/s, more servers (1, 1, 2, 1, 1, 2 ... devices, as many tasks, as much
memory in all), and tasks that are recorded routing instead of drawn.

Tasks are drawn: in each layer a base popularity from Dirichlet(5), and for each task its own from
Dirichlet(``evenness * experts * base``). Low evenness means that a task uses few experts, and
other ones than the other tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
import networkx as nx
import numpy as np
from numpy.typing import NDArray

from meshmoe.bench.events import Request, Simulation, poisson_arrivals
from meshmoe.bench.recorded import halves, load_recorded
from meshmoe.core.ids import NodeId
from meshmoe.placement.policies import DanceMoE, GlobalEplb, Negotiated, Policy
from meshmoe.placement.trace import Trace, decode_steps, prefill_steps
from meshmoe.placement.world import ModelShape, NodeSpec, World, build_world

SHARES = (1, 1, 2)
RTT_S = 1.2e-3
CALL_S = 250e-6
READ_BYTES_PER_S, FLOPS_PER_S = 400e9, 50e12
"""Of one device: about an inference card's memory, and half of its arithmetic."""

PROMPT_TOKENS, TOKENS = 128, 64
FIT_TOKENS, FIT_PROMPTS = 200, 4
EVENNESS = (0.1, 0.3, 1.0)


class Model(msgspec.Struct, frozen=True):
    """A model's shape: public configurations."""

    name: str
    layers: int
    experts: int
    top_k: int
    hidden: int
    width: int
    trunk_parameters: int
    """Of a layer: attention, and shared experts."""
    redundancy: float


MODELS = (
    Model("Mixtral-8x7B", 32, 8, 2, 4096, 14336, 42_000_000, 1.13),
    Model("DeepSeek-V2-Lite", 26, 64, 6, 2048, 1408, 31_000_000, 1.40),
)


RECORDED = Model("edge-28m", 8, 32, 4, 256, 128, 260_000, 1.40)
"""Whose tasks are recorded text of three kinds, with the arithmetic of this file's devices."""


class Mesh(msgspec.Struct, frozen=True):
    """What the sweep varies: servers, and the links between all of them."""

    servers: int = 3
    mbit_per_s: int = 500

    @property
    def shares(self) -> list[int]:
        """Devices of each server."""
        return [SHARES[i % len(SHARES)] for i in range(self.servers)]


Task = Callable[[np.random.Generator, int], NDArray[np.intp]]
"""Gives routing sets ``[tokens, layers, top_k]``."""


class Outcome(msgspec.Struct, frozen=True):
    """A policy in a setting: seconds a request. Evenness is 0 for recorded tasks."""

    model: str
    servers: int
    mbit_per_s: int
    evenness: float
    arrival_s: float
    policy: str
    mean_s: float
    p99_s: float
    first_mean_s: float


def draw_sets(rng: np.random.Generator, popularity: NDArray[np.float64], tokens: int, top_k: int) -> NDArray[np.intp]:
    """Routing sets ``[tokens, layers, top_k]``: experts drawn without replacement (Gumbel's trick)."""
    noise = rng.gumbel(size=(tokens, *popularity.shape))
    sets: NDArray[np.intp] = np.argsort(-(np.log(popularity + 1e-9) + noise), axis=2)[:, :, :top_k]
    return sets


def drawn_tasks(model: Model, evenness: float, count: int, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Popularities ``[layers, experts]`` of so many tasks."""
    base = rng.dirichlet(np.full(model.experts, 5.0), size=model.layers)
    return [np.stack([rng.dirichlet(evenness * model.experts * b + 1e-6) for b in base]) for _ in range(count)]


def as_task(model: Model, popularity: NDArray[np.float64]) -> Task:
    """A task that is drawn."""
    return lambda rng, tokens: draw_sets(rng, popularity, tokens, model.top_k)


def recorded_task(windows: NDArray[np.integer]) -> Task:
    """A task that reads recorded windows, one after the other in random order."""

    def read(rng: np.random.Generator, tokens: int) -> NDArray[np.intp]:
        parts = [windows[i] for i in rng.permutation(len(windows))[: -(-tokens // windows.shape[1])]]
        return np.concatenate(parts)[:tokens].astype(np.intp)

    return read


def setting(model: Model, tasks: Sequence[Task], arrival_s: float, seed: int, mesh: Mesh) -> World:
    """The servers, each with a sample of its task to decide on."""
    rng = np.random.default_rng(seed)
    expert_bytes = 6 * model.hidden * model.width
    shape = ModelShape(np.full((model.layers, model.experts), expert_bytes), 2 * model.hidden)
    slots = int(np.ceil(model.layers * model.experts * model.redundancy))
    specs = {
        NodeId(f"server-{i + 1}"): NodeSpec(
            min(model.layers * model.experts, -(-slots * share // sum(mesh.shares))) * expert_bytes,
            call_s=CALL_S,
            expert_s=expert_bytes / (share * READ_BYTES_PER_S),
            row_s=expert_bytes / (share * FLOPS_PER_S),
        )
        for i, share in enumerate(mesh.shares)
    }
    graph: nx.Graph[NodeId] = nx.complete_graph(list(specs))
    for _, _, edge in graph.edges(data=True):
        edge.update(rtt_s=RTT_S, rate_bytes_per_s=mesh.mbit_per_s * 1e6 / 8)
    traces = []
    for task in tasks:
        decode = decode_steps(task(rng, FIT_TOKENS), TOKENS / arrival_s)
        prompts = [task(rng, PROMPT_TOKENS) for _ in range(FIT_PROMPTS)]
        traces.append(Trace(decode, prefill_steps(prompts, 1 / arrival_s, model.experts)))
    return build_world(shape, graph, specs, traces)


def requests_of(model: Model, tasks: Sequence[Task], arrival_s: float, count: int, seed: int) -> list[Request]:
    """So many requests to each server, from routing that no policy has seen."""
    rng = np.random.default_rng(seed)
    found = []
    for node, task in enumerate(tasks):
        for at_s in poisson_arrivals(rng, arrival_s, count):
            sets = task(rng, PROMPT_TOKENS + TOKENS)
            hot = np.zeros((len(sets), model.layers, model.experts), np.int32)
            np.put_along_axis(hot, sets, 1, axis=2)
            steps = [hot[:PROMPT_TOKENS].sum(axis=0, dtype=np.int32), *hot[PROMPT_TOKENS:]]
            found.append(Request(node, float(at_s), steps, [PROMPT_TOKENS, *([1] * TOKENS)]))
    return found


def run_paper(count: int, arrivals_s: tuple[float, ...] = (10.0, 20.0), seed: int = 0) -> Iterator[Outcome]:
    """Simulate every model, evenness, arrival rate and policy, with ``count`` requests a server."""
    for model in MODELS:
        for evenness in EVENNESS:
            yield from _simulate(model, evenness, arrivals_s, count, seed, Mesh())


def run_sweep(count: int, servers: Sequence[int] = (4, 8, 16), seed: int = 0) -> Iterator[Outcome]:
    """Other links, more servers, recorded tasks; requests come every 10 s."""
    for mbit_per_s in (100, 1000):
        for model in MODELS:
            yield from _simulate(model, 0.3, (10.0,), count, seed, Mesh(mbit_per_s=mbit_per_s))
    for number in servers:
        for model in MODELS:
            yield from _simulate(model, 0.3, (10.0,), count, seed, Mesh(servers=number))
    for mbit_per_s in (100, 500, 1000):
        yield from _simulate(RECORDED, 0.0, (10.0,), count, seed, Mesh(mbit_per_s=mbit_per_s))


def _simulate(
    model: Model, evenness: float, arrivals_s: tuple[float, ...], count: int, seed: int, mesh: Mesh
) -> Iterator[Outcome]:
    policies: tuple[Policy, ...] = (GlobalEplb(), DanceMoE(), Negotiated())
    trunk_s = 2 * model.trunk_parameters / READ_BYTES_PER_S
    trunk_row_s = 2 * model.trunk_parameters / FLOPS_PER_S
    rng = np.random.default_rng(seed)
    if model is RECORDED:
        parts = [halves(windows) for windows in load_recorded(model.name).windows.values()][: mesh.servers]
        fit, judge = ([recorded_task(part[i]) for part in parts] for i in (0, 1))
    else:
        fit = judge = [as_task(model, task) for task in drawn_tasks(model, evenness, mesh.servers, rng)]
    world = setting(model, fit, arrivals_s[0], seed, mesh)
    placements = [(policy.name, policy.place(world)) for policy in policies]
    for arrival_s in arrivals_s:
        requests = requests_of(model, judge, arrival_s, count, seed + 1)
        for name, holders in placements:
            latencies = Simulation(world, holders, trunk_s, trunk_row_s).run(requests)
            yield Outcome(
                model=model.name,
                servers=mesh.servers,
                mbit_per_s=mesh.mbit_per_s,
                evenness=evenness,
                arrival_s=arrival_s,
                policy=name,
                mean_s=float(np.mean(latencies.total_s)),
                p99_s=float(np.quantile(latencies.total_s, 0.99)),
                first_mean_s=float(np.mean(latencies.first_s)),
            )
