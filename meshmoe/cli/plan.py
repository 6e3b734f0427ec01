"""``meshmoe plan``: what a mesh would do, before anyone builds it."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from meshmoe.bench.picture import svg
from meshmoe.bench.planner import Forecast, forecast, model_shape, plan_worlds
from meshmoe.bench.recorded import load_recorded
from meshmoe.core.config import parse_profile, parse_topology
from meshmoe.core.units import format_size
from meshmoe.model.bundled import bundled_model_dir
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.node.data_files import read_data_file
from meshmoe.placement.policies import all_policies


@click.command()
@click.argument("topology", metavar="TOPOLOGY")
@click.option("--model", type=click.Path(path_type=Path), metavar="DIR", help="Another model than the bundled one.")
@click.option("--trace", default="edge-12m", show_default=True, metavar="FILE", help="Recorded routing of that model.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option(
    "--graph", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.svg", help="Draw the placement."
)
def plan(topology: str, model: Path | None, trace: str, as_json: bool, graph: Path | None) -> None:
    """Predict what a mesh would do, for each placement policy.

    TOPOLOGY is a file, or a name in topology/. Of the model only sizes are read. Policies are fitted to one half of the
    recorded routing and judged on the other. Times are those spent on experts: attention is the same everywhere.
    """
    text, where = read_data_file("topology", topology, "TOPOLOGY")
    parsed = parse_topology(text, where)
    names = {node.profile for node in parsed.nodes.values() if node.profile is not None}
    profiles = {name: parse_profile(*read_data_file("nodes", name, "profile")) for name in sorted(names)}
    checkpoint = Checkpoint.open(model or bundled_model_dir())
    shape, top_k = model_shape(checkpoint), checkpoint.layout.layers[0].top_k
    worlds = plan_worlds(parsed, profiles, shape, top_k, load_recorded(trace), checkpoint.trunk_bytes)
    found = forecast(all_policies(), worlds)
    if graph is not None:
        graph.write_text(svg(parsed, worlds.judge, found[-1][1]), encoding="utf-8")
    if as_json:
        sys.stdout.write(msgspec.json.encode([one for one, _ in found]).decode() + "\n")
    else:
        _show(parsed.name, [one for one, _ in found])


def _show(name: str, found: list[Forecast]) -> None:
    console = Console(highlight=False)
    table = Table(title=f"{name}: a generated token's time in experts, mean over nodes")
    for column in ("policy", "ms", "p99 ms", "rounds", "at home", "bytes", "prompt ms"):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for one in found:
        table.add_row(
            one.policy,
            f"{one.token_ms:.2f}",
            f"{one.token_p99_ms:.2f}",
            f"{one.rounds:.2f}",
            f"{one.hit:.0%}",
            format_size(one.token_bytes),
            f"{one.prompt_ms:.1f}",
        )
    console.print(table)
    _show_drafts(console, found)
    ours = found[-1]
    table = Table(title=f"by node, under {ours.policy}")
    for column in ("node", "ms", "p99 ms", "rounds", "at home", "experts", "capacity"):
        table.add_column(column, justify="left" if column == "node" else "right", no_wrap=True)
    for node in ours.nodes:
        table.add_row(
            node.node,
            f"{node.token_ms:.2f}",
            f"{node.token_p99_ms:.2f}",
            f"{node.rounds:.2f}",
            f"{node.hit:.0%}",
            format_size(node.held_bytes),
            format_size(node.capacity_bytes),
        )
    console.print(table)


def _show_drafts(console: Console, found: list[Forecast]) -> None:
    """The same with drafts, and which placement is best with them and without."""
    table = Table(title="with drafts: a written token's time in experts and in drafting, mean over nodes")
    for column in ("policy", "ms", "rounds", "tokens a pass", "K", "right"):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for one in found:
        table.add_row(
            one.policy,
            f"{one.drafted_ms:.2f}",
            f"{one.drafted_rounds:.2f}",
            f"{one.tokens_per_pass:.2f}",
            f"{one.drafts:.1f}",
            f"{one.acceptance:.0%}",
        )
    console.print(table)
    plain = min(found, key=lambda one: one.token_ms)
    drafted = min(found, key=lambda one: one.drafted_ms)
    console.print(
        f"best without drafts: {plain.policy}, {plain.token_ms:.2f} ms; with drafts: {drafted.policy}, "
        f"{drafted.drafted_ms:.2f} ms a token ({plain.policy} {plain.drafted_ms:.2f})"
    )
