"""What a serving mesh does while its experts move, in figures: the curve of rounds a token, and what is optimal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import networkx as nx
import numpy as np
from numpy.typing import NDArray

from meshmoe.bench.recorded import trace_of
from meshmoe.bench.tables import table
from meshmoe.core.ids import NodeId
from meshmoe.placement.cost import bill, mesh_cost
from meshmoe.placement.policies.negotiated import Negotiated
from meshmoe.placement.world import Holders, ModelShape, NodeSpec, World, build_world


class TextPoint(msgspec.Struct, frozen=True):
    """One finished text.

    Attributes:
        at_s: When it ended, since the first was asked for.
        node: Which node wrote it.
        rounds: A token.
        tokens_per_s: As its client saw them, prompt included.
        pauses_s: Between its tokens.
    """

    at_s: float
    node: str
    rounds: float
    tokens_per_s: float
    pauses_s: list[float]


class Judged(msgspec.Struct, frozen=True):
    """A placement by recorded sets; means over nodes.

    Attributes:
        rounds: A token.
        token_ms: Predicted time in experts of a token.
    """

    rounds: float
    token_ms: float


class Against(msgspec.Struct, frozen=True):
    """Where experts stand, against fresh negotiations by one head, by the sets that the nodes recorded.

    Attributes:
        live: Where they stand.
        fresh: A fresh plan that was made for the very sets it is judged by.
        unseen: One made for the other half of the sets, since no plan knows the tokens to come.
    """

    live: Judged
    fresh: Judged
    unseen: Judged


class Phase(msgspec.Struct, frozen=True):
    """One part of the run.

    Attributes:
        name: What it is.
        begin_s, end_s: Of the run.
        settled: How often plans came to rest, at the node where most often.
        moves: Experts that became resident somewhere.
        moving_s: From the first of them to the last, since the part began; 0 and 0 without any.
        against: At the part's end; None where nodes have recorded too little.
    """

    name: str
    begin_s: float
    end_s: float
    settled: int
    moves: int
    moving_s: tuple[float, float]
    against: Against | None


class LiveRun(msgspec.Struct, frozen=True):
    """All of it."""

    points: list[TextPoint]
    phases: list[Phase]


def live_worlds(
    shape: ModelShape,
    graph: nx.Graph[NodeId],
    capacity_bytes: Mapping[NodeId, int],
    windows: Mapping[NodeId, NDArray[np.integer]],
    call_s: float,
) -> tuple[World, tuple[World, World]]:
    """The running mesh as a world to plan for, all nodes writing equally fast: with all windows, and with every other.

    Args:
        shape: The model.
        graph: Links.
        capacity_bytes: What each node's plan may use.
        windows: By node, ``[windows, tokens, layers, top_k]``.
        call_s: Of a call beside its link.
    """
    specs = {node: NodeSpec(bytes_, call_s=call_s) for node, bytes_ in capacity_bytes.items()}

    def world(some: slice) -> World:
        sets = [windows[node][some] for node in capacity_bytes]
        return build_world(
            shape, graph, specs, [trace_of(one, shape.experts, prompt_tokens=0, tokens_per_s=1.0) for one in sets]
        )

    return world(slice(None)), (world(slice(0, None, 2)), world(slice(1, None, 2)))


def judged(world: World, holders: Holders) -> Judged:
    """What holders cost by a world's traces, of which all are of one token a second."""
    rounds = [bill(world, i, trace.decode, holders).rounds for i, trace in enumerate(world.traces)]
    return Judged(float(np.mean(rounds)), 1e3 * mesh_cost(world, holders) / len(world.nodes))


def against_fresh(world: World, halves: tuple[World, World], holders: Holders) -> Against:
    """Compare holders with fresh negotiations.

    Args:
        world: With all that was recorded.
        halves: With one half of it each.
        holders: Where experts stand.
    """
    one, other = halves
    crossed = judged(one, Negotiated().place(other)), judged(other, Negotiated().place(one))
    unseen = Judged(*(float(np.mean(values)) for values in zip(*map(msgspec.structs.astuple, crossed), strict=True)))
    return Against(judged(world, holders), judged(world, Negotiated().place(world)), unseen)


def curve_table(run: LiveRun, bin_s: float) -> str:
    """Rounds a token by node over time, tokens a second, and the 99th percentile of pauses."""
    nodes = sorted({point.node for point in run.points})
    rows = []
    end_s = max(point.at_s for point in run.points)
    for begin_s in np.arange(0.0, end_s, bin_s):
        some = [point for point in run.points if begin_s <= point.at_s < begin_s + bin_s]
        if not some:
            continue
        by_node = [[point.rounds for point in some if point.node == node] for node in nodes]
        pauses_s = sorted(pause_s for point in some for pause_s in point.pauses_s)
        phase = next((phase.name for phase in run.phases if phase.begin_s <= begin_s < phase.end_s), "")
        rows.append(
            [f"{begin_s:.0f}-{begin_s + bin_s:.0f}", phase]
            + [f"{np.mean(rounds):.2f}" if rounds else "" for rounds in by_node]
            + [f"{np.mean([r for rounds in by_node for r in rounds]):.2f}"]
            + [f"{np.mean([point.tokens_per_s for point in some]):.1f}"]
            + [f"{1e3 * pauses_s[int(0.99 * (len(pauses_s) - 1))]:.0f}" if pauses_s else ""]
        )
    return table(["seconds", "texts", *nodes, "mean rounds", "tokens/s of a text", "p99 pause ms"], rows)


def phase_table(phases: Sequence[Phase]) -> str:
    """What each part came to."""
    rows = []
    for phase in phases:
        row = [
            phase.name,
            str(phase.settled),
            str(phase.moves),
            f"{phase.moving_s[0]:.0f}-{phase.moving_s[1]:.0f} s",
        ]
        if (found := phase.against) is not None:
            row += [f"{one.rounds:.2f} / {one.token_ms:.1f}" for one in (found.live, found.fresh, found.unseen)]
            row += [f"{found.live.token_ms / one.token_ms - 1:+.1%}" for one in (found.fresh, found.unseen)]
        rows.append(row + [""] * (9 - len(row)))
    titles = ["part", "plans settled", "experts moved", "between", "rounds / ms", "fresh plan, same tokens"]
    return table([*titles, "fresh plan, other tokens", "apart", "apart"], rows)
