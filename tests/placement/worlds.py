"""Small worlds for the tests of this package: skewed, repeatable demand on nodes of stated capacity."""

import networkx as nx
import numpy as np

from meshmoe.core.ids import NodeId
from meshmoe.placement.outlook import Outlook
from meshmoe.placement.policies.base import demands
from meshmoe.placement.trace import Trace, decode_steps, no_steps, prefill_steps
from meshmoe.placement.world import ModelShape, NodeSpec, build_world

SIZE = 1000


def routing(rng, tokens, layers, experts, top_k, evenness):
    """Routing sets with a popular half that differs by layer, and experts that like each other's company."""
    weights = rng.dirichlet(np.full(experts, evenness), size=layers) + 0.1 / experts
    scores = np.log(weights) + rng.gumbel(size=(tokens, layers, experts)) + rng.normal(size=(tokens, layers, 1))
    return np.argsort(-scores, axis=2)[:, :, :top_k]


def small_world(
    seed=0,
    *,
    nodes=3,
    layers=4,
    experts=8,
    top_k=2,
    tokens=200,
    redundancy=1.25,
    shares=None,
    prefill=False,
    links=None,
    evenness=0.3,
):
    """A full mesh on 1 ms links, unless ``links`` gives (a, b, round trip in ms) by position.

    A large ``evenness`` makes all experts of a layer alike.
    """
    rng = np.random.default_rng(seed)
    names = [NodeId(f"n{i}") for i in range(nodes)]
    shares = shares or [1] * nodes
    slots = [-(-int(layers * experts * redundancy * share * 10) // int(10 * sum(shares))) for share in shares]
    graph = nx.Graph()
    for a, b, rtt_ms in links or [(i, j, 1.0) for i in range(nodes) for j in range(i)]:
        graph.add_edge(names[a], names[b], rtt_s=rtt_ms * 1e-3, rate_bytes_per_s=1e7)
    traces = []
    for _ in names:
        sets = routing(rng, tokens, layers, experts, top_k, evenness)
        chunks = [sets[i : i + 20] for i in range(0, tokens, 20)]
        prompt = prefill_steps(chunks, 0.5, experts) if prefill else no_steps(layers)
        traces.append(Trace(decode_steps(sets, 10.0), prompt))
    specs = {
        name: NodeSpec(min(count, layers * experts) * SIZE, call_s=1e-4, expert_s=(1 + i) * 1e-5, row_s=1e-6)
        for i, (name, count) in enumerate(zip(names, slots, strict=True))
    }
    return build_world(ModelShape(np.full((layers, experts), SIZE), 512), graph, specs, traces)


def outlook_of(world, holders, owner):
    """What a node believes that knows everything."""
    time_s = world.call_s(1.0) + 2 * world.shape.row_bytes * world.byte_s
    np.fill_diagonal(time_s, 0.0)
    row_s = np.array([spec.row_s for spec in world.specs])
    return Outlook(world.shape, time_s, world.byte_s, row_s, holders, owner, demands(world))
