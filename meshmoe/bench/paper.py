"""The setting of DanceMoE's experiment (arXiv 2508.12851), as far as it is known, simulated.

Known: three servers with 1, 1 and 2 devices, 500 Mbit/s, one task a server, Poisson arrivals every 10 or 20 s, Mixtral
with about 1.13 and DeepSeek-V2-Lite with about 1.40 times the experts' memory. Not known to us: round trip, device
speed, cost of a call, lengths, and the tasks' routing. These are chosen here, not tuned to any result; how alike tasks
are is swept.

Tasks are drawn: in each layer a base popularity from Dirichlet(5), and for each task its own from
Dirichlet(``evenness * experts * base``). Low evenness means that a task uses few experts, and
other ones than the other tasks.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import networkx as nx
import numpy as np
from numpy.typing import NDArray

from meshmoe.bench.events import Request, Simulation, poisson_arrivals
from meshmoe.core.ids import NodeId
from meshmoe.placement.policies import DanceMoE, GlobalEplb, Negotiated, Policy
from meshmoe.placement.trace import Trace, decode_steps, prefill_steps
from meshmoe.placement.world import ModelShape, NodeSpec, World, build_world

SHARES = (1, 1, 2)
RTT_S, RATE_BYTES_PER_S = 1.2e-3, 500e6 / 8
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


class Outcome(msgspec.Struct, frozen=True):
    """A policy in a setting: seconds a request."""

    model: str
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


def setting(model: Model, evenness: float, arrival_s: float, seed: int) -> tuple[World, list[NDArray[np.float64]]]:
    """The servers, each with a sample of its task to decide on; and the tasks' popularities."""
    rng = np.random.default_rng(seed)
    base = rng.dirichlet(np.full(model.experts, 5.0), size=model.layers)
    tasks = [np.stack([rng.dirichlet(evenness * model.experts * b + 1e-6) for b in base]) for _ in SHARES]
    expert_bytes = 6 * model.hidden * model.width
    shape = ModelShape(np.full((model.layers, model.experts), expert_bytes), 2 * model.hidden)
    slots = int(np.ceil(model.layers * model.experts * model.redundancy))
    specs = {
        NodeId(f"server-{i + 1}"): NodeSpec(
            min(model.layers * model.experts, -(-slots * share // sum(SHARES))) * expert_bytes,
            call_s=CALL_S,
            expert_s=expert_bytes / (share * READ_BYTES_PER_S),
            row_s=expert_bytes / (share * FLOPS_PER_S),
        )
        for i, share in enumerate(SHARES)
    }
    graph: nx.Graph[NodeId] = nx.complete_graph(list(specs))
    for _, _, edge in graph.edges(data=True):
        edge.update(rtt_s=RTT_S, rate_bytes_per_s=RATE_BYTES_PER_S)
    traces = []
    for task in tasks:
        sets = draw_sets(rng, task, FIT_TOKENS, model.top_k)
        prompts = [draw_sets(rng, task, PROMPT_TOKENS, model.top_k) for _ in range(FIT_PROMPTS)]
        decode = decode_steps(sets, TOKENS / arrival_s)
        traces.append(Trace(decode, prefill_steps(prompts, 1 / arrival_s, model.experts)))
    return build_world(shape, graph, specs, traces), tasks


def requests_of(
    model: Model, tasks: list[NDArray[np.float64]], arrival_s: float, count: int, seed: int
) -> list[Request]:
    """So many requests to each server, from routing that no policy has seen."""
    rng = np.random.default_rng(seed)
    found = []
    for node, task in enumerate(tasks):
        for at_s in poisson_arrivals(rng, arrival_s, count):
            sets = draw_sets(rng, task, PROMPT_TOKENS + TOKENS, model.top_k)
            hot = np.zeros((len(sets), model.layers, model.experts), np.int32)
            np.put_along_axis(hot, sets, 1, axis=2)
            steps = [hot[:PROMPT_TOKENS].sum(axis=0, dtype=np.int32), *hot[PROMPT_TOKENS:]]
            found.append(Request(node, float(at_s), steps, [PROMPT_TOKENS, *([1] * TOKENS)]))
    return found


def run_paper(count: int, arrivals_s: tuple[float, ...] = (10.0, 20.0), seed: int = 0) -> Iterator[Outcome]:
    """Simulate every model, evenness, arrival rate and policy, with ``count`` requests a server."""
    policies: tuple[Policy, ...] = (GlobalEplb(), DanceMoE(), Negotiated())
    for model in MODELS:
        trunk_s = 2 * model.trunk_parameters / READ_BYTES_PER_S
        trunk_row_s = 2 * model.trunk_parameters / FLOPS_PER_S
        for evenness in EVENNESS:
            world, tasks = setting(model, evenness, arrivals_s[0], seed)
            placements = [(policy.name, policy.place(world)) for policy in policies]
            for arrival_s in arrivals_s:
                requests = requests_of(model, tasks, arrival_s, count, seed + 1)
                for name, holders in placements:
                    latencies = Simulation(world, holders, trunk_s, trunk_row_s).run(requests)
                    yield Outcome(
                        model=model.name,
                        evenness=evenness,
                        arrival_s=arrival_s,
                        policy=name,
                        mean_s=float(np.mean(latencies.total_s)),
                        p99_s=float(np.quantile(latencies.total_s, 0.99)),
                        first_mean_s=float(np.mean(latencies.first_s)),
                    )
