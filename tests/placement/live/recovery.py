"""When a second thought pays: `python -m tests.placement.live.recovery [SEEDS]`.

Three nodes on recorded routing in virtual time (`tests.placement.live.used`), 120 s of their own domain and 120 s of
their neighbour's, with second thoughts when the sample is so many times that of the first: when plans settled and how
many experts each settlement moved, and the cost above a fresh plan of all windows, on windows that neither has seen.
"""

import sys
from dataclasses import replace

import click

from meshmoe.bench.placement import KINDS, Cell, worlds
from meshmoe.bench.recorded import load_recorded, trace_of
from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.live import occasion
from meshmoe.placement.policies import Negotiated
from tests.placement.live.used import TOKENS_PER_S, UsedMesh

SECONDS = 120


def planned_for(fit, windows):
    """The world as planners see it: one place a node is kept free."""
    place = int(fit.shape.expert_bytes.max())
    specs = tuple(replace(spec, capacity_bytes=spec.capacity_bytes - place) for spec in fit.specs)
    traces = tuple(trace_of(one, 32, prompt_tokens=0, tokens_per_s=float(TOKENS_PER_S)) for one in windows)
    return replace(fit, specs=specs, traces=traces)


def recover(seed):
    """For each part: settlements as (second, experts moved), and cost over that of a fresh plan."""
    recorded = load_recorded("edge-12m")
    fit, _ = worlds(recorded, Cell("edge-12m", 1.35, "equal", "wifi"))
    own = [recorded.windows[kind] for kind in KINDS]
    mesh = UsedMesh(fit, seed)
    mesh.look()
    parts = []
    for windows in (own, [*own[1:], own[0]]):
        seen, unseen = [one[:14] for one in windows], [one[14:] for one in windows]
        before = len(mesh.settlements)
        mesh.serve(seen, SECONDS)
        judge = planned_for(fit, unseen)
        fresh = Negotiated().place(planned_for(fit, seen))
        parts.append((mesh.settlements[before:], mesh_cost(judge, mesh.holders()) / mesh_cost(judge, fresh)))
    return parts


def main(seeds):
    click.echo("| sample | seed | own domain: settled | over fresh | neighbour's: settled | over fresh |")
    click.echo("|---|---|---|---|---|---|")
    for growth in (2, 3, 4):
        occasion.GROWTH = growth
        for seed in range(1, seeds + 1):
            cells = (f"{settled} | {ratio:.3f}" for settled, ratio in recover(seed))
            click.echo(f"| {growth} times | {seed} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 3)
