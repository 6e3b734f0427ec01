"""The comparison of placement policies: every policy in every cell of redundancy, capacities, links and traces.

Policies are fitted to one half of the recorded windows and scored on the other. What the numbers stand for is set here
and nowhere else; nothing in it was tuned to a result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import networkx as nx
import numpy as np

from meshmoe.bench.recorded import Recorded, halves, trace_of
from meshmoe.core.ids import NodeId
from meshmoe.core.links import LINK_PRESETS
from meshmoe.placement.cost import bill, mesh_cost
from meshmoe.placement.policies import Policy, all_policies
from meshmoe.placement.world import ModelShape, NodeSpec, World, build_world

REDUNDANCIES = (1.0, 1.13, 1.2, 1.4, 1.5, 2.0)
CAPACITIES = {"equal": (1, 1, 1), "1:1:2": (1, 1, 2)}
LINKS = tuple(LINK_PRESETS)
KINDS = ("prose", "python", "dictionary")
"""The text that each of the three nodes is asked for."""

WIDTHS = {"edge-12m": 48, "edge-28m": 128}
"""Expert width of the recorded models; the rest of their shape is alike."""

HIDDEN, EXPERTS = 256, 32
PROMPT_TOKENS = 128
"""Of each window of 256."""

TOKENS_PER_S = 10.0
CALL_S = 250e-6
"""Of a remote call, beyond the link: 150-170 us through trio and ZeroMQ, 98 us out of the compute thread and back."""

READ_BYTES_PER_S = 28e9
"""At which one thread computes an expert for one row: it reads the weights."""

FLOPS_PER_S = 100e9
"""At which it computes further rows."""


class Cell(NamedTuple):
    """A setting."""

    trace: str
    redundancy: float
    capacity: str
    link: str


class Score(msgspec.Struct, frozen=True):
    """A policy's score in a cell: means over the three nodes.

    Attributes:
        trace, redundancy, capacity, link: The cell.
        policy: Its name.
        rounds: Layers a generated token that wait for another node.
        hit: Share of expert calls of generated tokens served at home.
        token_bytes: Sent and received for experts by a generated token.
        token_ms, token_p99_ms: Time in experts, of a generated token.
        prompt_ms: Time in experts, of a prompt of 128 tokens.
        request_ms: Of a request: the prompt, and 128 tokens.
        decide_s: What deciding took, in wall time.
    """

    trace: str
    redundancy: float
    capacity: str
    link: str
    policy: str
    rounds: float
    hit: float
    token_bytes: float
    token_ms: float
    token_p99_ms: float
    prompt_ms: float
    request_ms: float
    decide_s: float


def worlds(
    recorded: Recorded, cell: Cell, layers: int | None = None, windows: int | None = None
) -> tuple[World, World]:
    """The world to fit on and the world to score on.

    Args:
        recorded: Routing of three kinds of text or more.
        cell: The setting.
        layers: Only the first so many.
        windows: Only the first so many of each half.
    """
    width = WIDTHS[recorded.name]
    layers = layers or recorded.layers
    parameters = 3 * HIDDEN * width
    shape = ModelShape(np.full((layers, EXPERTS), 2 * parameters), 2 * HIDDEN)
    slots, shares = int(np.ceil(layers * EXPERTS * cell.redundancy - 1e-9)), CAPACITIES[cell.capacity]
    specs = {
        NodeId(kind): NodeSpec(
            capacity_bytes=min(layers * EXPERTS, -(-slots * share // sum(shares))) * 2 * parameters,
            call_s=CALL_S,
            expert_s=2 * parameters / READ_BYTES_PER_S,
            row_s=2 * parameters / FLOPS_PER_S,
        )
        for kind, share in zip(KINDS, shares, strict=True)
    }
    link = LINK_PRESETS[cell.link]
    graph: nx.Graph[NodeId] = nx.complete_graph(list(specs))
    for _, _, edge in graph.edges(data=True):
        edge.update(rtt_s=link.rtt_s + link.jitter_s, rate_bytes_per_s=link.rate_bytes_per_s)
    parts = [[half[:windows, :, :layers] for half in halves(recorded.windows[kind])] for kind in KINDS]
    fit, score = (
        [trace_of(part[i], EXPERTS, prompt_tokens=PROMPT_TOKENS, tokens_per_s=TOKENS_PER_S) for part in parts]
        for i in (0, 1)
    )
    return build_world(shape, graph, specs, fit), build_world(shape, graph, specs, score)


def score_policy(policy: Policy, fit: World, judge: World, cell: Cell) -> Score:
    """Let a policy decide on one half, and judge it on the other."""
    started = time.perf_counter()
    holders = policy.place(fit)
    decide_s = time.perf_counter() - started
    fit.check(holders)
    decode = [bill(judge, node, trace.decode, holders) for node, trace in enumerate(judge.traces)]
    prefill = [bill(judge, node, trace.prefill, holders) for node, trace in enumerate(judge.traces)]
    token_ms = 1e3 * float(np.mean([b.mean_s for b in decode]))
    prompt_ms = 1e3 * PROMPT_TOKENS * float(np.mean([b.mean_s for b in prefill]))
    return Score(
        *cell,
        policy=policy.name,
        rounds=float(np.mean([b.rounds for b in decode])),
        hit=float(np.mean([b.hit for b in decode])),
        token_bytes=float(np.mean([b.wire_bytes for b in decode])),
        token_ms=token_ms,
        token_p99_ms=1e3 * float(np.mean([b.p99_s for b in decode])),
        prompt_ms=prompt_ms,
        request_ms=prompt_ms + 128 * token_ms,
        decide_s=decide_s,
    )


def cells(traces: Sequence[str], *, quick: bool) -> list[Cell]:
    """All settings, or a few that show the span."""
    if quick:
        return [Cell(traces[0], r, c, "edge") for r in (1.0, 1.2, 1.5) for c in CAPACITIES]
    return [Cell(t, r, c, k) for t in traces for c in CAPACITIES for k in LINKS for r in REDUNDANCIES]


def compare(recorded: Sequence[Recorded], *, quick: bool) -> Iterator[list[Score]]:
    """Score every policy, one cell after the other.

    Args:
        recorded: Routing of `WIDTHS`' models.
        quick: Only a few cells, of the first of them.
    """
    by_name = {one.name: one for one in recorded}
    for cell in cells(list(by_name), quick=quick):
        fit, judge = worlds(by_name[cell.trace], cell)
        yield [score_policy(policy, fit, judge, cell) for policy in all_policies()]


class Bound(msgspec.Struct, frozen=True):
    """How few rounds a token any placement could have on the half on which policies are scored.

    Attributes:
        trace, redundancy, capacity: The setting; links do not matter.
        rounds: The bound.
    """

    trace: str
    redundancy: float
    capacity: str
    rounds: float


def bounds(recorded: Recorded) -> Iterator[Bound]:
    """For the redundancies at which memory is scarce."""
    from meshmoe.placement.policies.fewest_rounds import fewest_rounds  # scipy takes a while to import

    for capacity in CAPACITIES:
        for redundancy in REDUNDANCIES[:3]:
            _, judge = worlds(recorded, Cell(recorded.name, redundancy, capacity, "edge"))
            yield Bound(recorded.name, redundancy, capacity, fewest_rounds(judge))


class Gap(msgspec.Struct, frozen=True):
    """How far a policy's cost is from the best possible, on the trace it was fitted to.

    Attributes:
        redundancy: The setting, otherwise edge links, equal capacities.
        layers, tokens: Size of the case, tokens a node.
        policy: Its name.
        ratio: Its cost over the optimum's.
        bound_ratio: Its cost over the solver's lower bound: what is proven.
        solved: Whether the solver closed its gap in time.
    """

    redundancy: float
    layers: int
    tokens: int
    policy: str
    ratio: float
    bound_ratio: float
    solved: bool


def gap_to_optimum(
    recorded: Recorded, redundancy: float, *, layers: int, tokens: int, time_limit_s: float
) -> Iterator[Gap]:
    """Compare policies with the optimum of a part of the model and of its trace."""
    from meshmoe.placement.policies.optimum import solve  # scipy takes a while to import

    fit, _ = worlds(recorded, Cell(recorded.name, redundancy, "equal", "edge"), layers)
    rng = np.random.default_rng(0)
    traces = []
    for trace in fit.traces:
        part = trace.decode.take(np.sort(rng.permutation(len(trace.decode))[:tokens]))
        traces.append(type(trace)(part.scaled(len(trace.decode) / tokens), trace.prefill.take(slice(0, 0))))
    world = World(fit.shape, fit.nodes, fit.specs, tuple(traces), fit.rtt_s, fit.byte_s, fit.near)
    best = solve(world, time_limit_s=time_limit_s)
    for policy in all_policies():
        cost = mesh_cost(world, policy.place(world))
        yield Gap(
            redundancy=redundancy,
            layers=layers,
            tokens=tokens,
            policy=policy.name,
            ratio=cost / best.cost,
            bound_ratio=cost / best.bound,
            solved=best.cost <= best.bound * 1.001,
        )
