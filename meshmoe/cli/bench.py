"""``meshmoe bench``: measurements that anyone can repeat."""

from __future__ import annotations

import sys

import click
import msgspec

from meshmoe.bench.paper import run_paper, run_sweep
from meshmoe.bench.placement import Gap, Score, bounds, compare, gap_to_optimum
from meshmoe.bench.recorded import load_recorded
from meshmoe.bench.tables import gap_table, paper_table, score_tables, verdicts
from meshmoe.cli.bench_engine import calls, cuda, decode, draft_cells, drafts, kernels, make_model
from meshmoe.cli.bench_links import links
from meshmoe.cli.bench_live import live
from meshmoe.cli.bench_serving import mesh, prefill, serve
from meshmoe.cli.bench_watchers import watchers


@click.group()
def bench() -> None:
    """Measurements that anyone can repeat."""


@bench.command()
@click.option("--quick", is_flag=True, help="A few cells, in a minute.")
@click.option("--json", "as_json", is_flag=True, help="All numbers, for programs.")
@click.option("--optimum/--no-optimum", default=True, help="Compare with the optimum of small cases.")
def placement(quick: bool, as_json: bool, optimum: bool) -> None:
    """Compare placement policies on recorded routing.

    Three nodes, each asked for one kind of text; policies are fitted to one half of the text and scored on the other.
    """
    names = ("edge-12m",) if quick else ("edge-12m", "edge-28m")
    recorded = [load_recorded(name) for name in names]
    scores: list[Score] = []
    for cell in compare(recorded, quick=quick):
        scores += cell
        one = cell[0]
        click.echo(f"{one.trace} {one.redundancy:g} {one.capacity} {one.link}", err=True)
    gaps: list[Gap] = []
    if optimum:
        for tokens in (24,) if quick else (24, 60):
            for redundancy in (1.2,) if quick else (1.0, 1.2, 1.5):
                gaps += gap_to_optimum(recorded[0], redundancy, layers=2, tokens=tokens, time_limit_s=60.0)
    if as_json:
        sys.stdout.write(msgspec.json.encode({"scores": scores, "gaps": gaps}).decode() + "\n")
        return
    click.echo("rounds / hit ratio / KiB / ms / p99 ms, a token, by redundancy\n")
    click.echo(score_tables(scores))
    click.echo("\n" + verdicts(scores))
    if gaps:
        click.echo("\n" + gap_table(gaps))


for command in (
    live,
    links,
    kernels,
    decode,
    calls,
    prefill,
    serve,
    mesh,
    watchers,
    cuda,
    drafts,
    draft_cells,
    make_model,
):
    bench.add_command(command)


@bench.command()
@click.option("--trace", default="edge-12m", show_default=True, help="edge-12m or edge-28m.")
def bound(trace: str) -> None:
    """Show how few rounds a token any placement could have on the half on which policies are scored."""
    click.echo("| trace | capacity | redundancy | rounds at least |\n|---|---|---|---|")
    for one in bounds(load_recorded(trace)):
        click.echo(f"| {one.trace} | {one.capacity} | {one.redundancy:g} | {one.rounds:.3f} |")


@bench.command()
@click.option("--requests", default=15, show_default=True, type=click.IntRange(1), help="To each server.")
@click.option("--json", "as_json", is_flag=True, help="All numbers, for programs.")
@click.option("--sweep", is_flag=True, help="Other links, more servers, recorded tasks, instead of the paper's own.")
def paper(requests: int, as_json: bool, sweep: bool) -> None:
    """Simulate the setting of DanceMoE's experiment, as far as it is known."""
    outcomes = []
    for one in run_sweep(requests) if sweep else run_paper(requests):
        outcomes.append(one)
        click.echo(f"{one.model} {one.servers} {one.mbit_per_s} {one.arrival_s:g} {one.policy}", err=True)
    if as_json:
        sys.stdout.write(msgspec.json.encode(outcomes).decode() + "\n")
    else:
        click.echo(paper_table(outcomes))
