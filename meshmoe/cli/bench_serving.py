"""``meshmoe bench serve``, ``mesh`` and ``prefill``: nodes under load, through their sockets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import psutil
import trio

from meshmoe.bench_engine.load import Outcome, TimedRequest, poisson_due_s, run_load
from meshmoe.bench_engine.load_figures import LoadFigure, load_table
from meshmoe.bench_engine.mesh_figures import MeshFigure, mesh_table
from meshmoe.bench_engine.openai_stream import Server
from meshmoe.bench_engine.texts import OPENINGS, characters_for, long_text, short_prompt
from meshmoe.bench_engine.wires.round_trip import round_trips
from meshmoe.bench_engine.wires.wires import Wires, open_wires
from meshmoe.cli.adapting import Use, adapt
from meshmoe.cli.bench_contest import Contestant, Wanted, drafting_ways, in_turns, mean_rtt_ms, open_contestants
from meshmoe.cli.rivals import Rivals
from meshmoe.core.config import Topology, parse_topology
from meshmoe.core.errors import ConfigError
from meshmoe.engine.drafts.mode import parse_draft_mode
from meshmoe.node.data_files import read_data_file

ADAPT_TEXTS_FROM = 1000
"""Numbers of the texts that a mesh writes to show its nodes' use: none that is measured."""

Command = TypeVar("Command", bound=Callable[..., Any])


def _contest_options(command: Command) -> Command:
    """What all three have in common."""
    for option in reversed(
        (
            click.option(
                "--model",
                type=click.Path(exists=True, file_okay=False, path_type=Path),
                metavar="DIR",
                help="Checkpoint.  [default: the bundled one]",
            ),
            click.option("--join", default="", metavar="FLAGS", help="Further flags of `meshmoe join` for the nodes."),
            click.option(
                "--compare",
                multiple=True,
                metavar="FLAGS",
                help="Measure nodes with these flags besides, in turns; may be repeated.",
            ),
            click.option(
                "--against",
                multiple=True,
                metavar="URL",
                help="Measure another OpenAI-compatible server with the same requests, in turns; may be repeated.",
            ),
            click.option("--turns", type=click.IntRange(1), default=5, show_default=True, help="Medians of this many."),
            click.option("--json", "as_json", is_flag=True, help="All numbers, for programs."),
        )
    ):
        command = option(command)
    return command


def _progress(words: str) -> None:
    click.echo(words, err=True)


def _write(figures: Any, table: str, as_json: bool) -> None:
    load = psutil.getloadavg()
    if as_json:
        sys.stdout.write(msgspec.json.encode({"load": load, "figures": figures}).decode() + "\n")
    else:
        click.echo(table)
        click.echo(f"\nload of this machine: {', '.join(f'{one:.1f}' for one in load)}")


@click.command()
@_contest_options
@click.option("--rate", type=click.FloatRange(0.001), default=4.0, show_default=True, help="Requests a second.")
@click.option("--requests", type=click.IntRange(1), default=40, show_default=True, help="In a turn.")
@click.option("--streams", type=click.IntRange(1), help="So many requests at once, instead of --rate and --requests.")
@click.option("--max-tokens", type=click.IntRange(2), default=64, show_default=True, help="Of each answer.")
@click.option("--prefill", type=click.IntRange(0), default=0, help="Read prompts of so many tokens beside the streams.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the arrivals.")
def serve(
    model: Path | None,
    join: str,
    compare: tuple[str, ...],
    against: tuple[str, ...],
    turns: int,
    as_json: bool,
    rate: float,
    requests: int,
    streams: int | None,
    max_tokens: int,
    prefill: int,
    seed: int,
) -> None:
    """Put a load on a node that holds the whole model.

    Requests arrive at random moments (Poisson), whatever became of the earlier ones; with --streams all at once. The
    prompts are short beginnings of texts of five kinds.
    """

    async def run() -> dict[str, LoadFigure]:
        async with open_contestants(Wanted(model, join, compare, against), None, "", _progress) as contestants:
            characters = await characters_for(prefill, contestants[0].count_tokens) if prefill else 0
            numbers = count(1)

            async def load(contestant: Contestant, turn: int) -> Outcome:
                server = contestant.servers[0]
                wanted = streams or requests
                due_s = [0.0] * wanted if streams else poisson_due_s(wanted, rate, seed + turn)
                domains = list(OPENINGS)
                asked = [
                    TimedRequest(server, short_prompt(domains[i % 5], turn * wanted + i // 5), max_tokens, due)
                    for i, due in enumerate(due_s)
                ]

                def beside() -> Iterator[tuple[Server, str]]:
                    while True:
                        yield server, long_text(next(numbers), characters)

                return await run_load(asked, beside if prefill else None)

            return await in_turns(contestants, turns, load, _progress)

    figures = trio.run(run)
    _write(figures, load_table(figures), as_json)


@click.command()
@_contest_options
@click.option("--tokens", type=click.IntRange(1), multiple=True, help="Of the prompt; may be repeated.  [default: 256]")
def prefill(
    model: Path | None,
    join: str,
    compare: tuple[str, ...],
    against: tuple[str, ...],
    turns: int,
    as_json: bool,
    tokens: tuple[int, ...],
) -> None:
    """Measure how fast a node that holds the whole model reads prompts, one at a time, to their first token."""

    async def run() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async with open_contestants(Wanted(model, join, compare, against), None, "", _progress) as contestants:
            numbers = count(1)
            for wanted in tokens or (256,):
                characters = await characters_for(wanted, contestants[0].count_tokens)
                read: list[int] = []

                async def load(contestant: Contestant, _: int, characters: int = characters) -> Outcome:
                    text = long_text(next(numbers), characters)
                    outcome = await run_load([TimedRequest(contestant.servers[0], text, 1)])
                    read.append(outcome.answers[0].prompt_tokens)  # noqa: B023 - used within this round of the loop
                    return outcome

                _progress(f"prompts of {wanted} tokens")
                figures = await in_turns(contestants, turns, load, _progress)
                mean_tokens = sum(read) / len(read)
                found += [
                    {
                        "contestant": name,
                        "prompt_tokens": round(mean_tokens),
                        "first_token_ms": figure.first_p50_ms,
                        "tokens_per_s": 1e3 * mean_tokens / figure.first_p50_ms,
                    }
                    for name, figure in figures.items()
                ]
        return found

    figures = trio.run(run)
    _write(figures, _prefill_table(figures), as_json)


def _prefill_table(figures: list[dict[str, Any]]) -> str:
    lines = ["| prompt, tokens | | first token, ms | tok/s | of the first line |", "|---|---|---|---|---|"]
    base = figures[0]
    for f in figures:
        base = f if f["contestant"] == base["contestant"] else base
        share = f["tokens_per_s"] / base["tokens_per_s"]
        lines.append(
            f"| {f['prompt_tokens']} | {f['contestant']} | {f['first_token_ms']:.1f} | {f['tokens_per_s']:,.0f} "
            f"| {share:.2f} |"
        )
    return "\n".join(lines)


@click.command()
@_contest_options
@click.option("--topology", default="three-edge-servers", show_default=True, metavar="FILE")
@click.option(
    "--links",
    type=click.Choice(["emulated", "namespaces"]),
    default="emulated",
    show_default=True,
    help="In the nodes' own transport, or of real packets between network namespaces (root).",
)
@click.option(
    "--against-command",
    "against_commands",
    multiple=True,
    metavar="COMMAND",
    help="Start another OpenAI-compatible server in a namespace, with {host}, {port} and {workers} filled in, and "
    "measure it in turns; may be repeated.",
)
@click.option("--against-node", default="", metavar="NAME", help="In whose namespace.  [default: the first node's]")
@click.option(
    "--worker-command",
    default="",
    metavar="COMMAND",
    help="Run in every other node's namespace before, with {host} and {port} filled in.",
)
@click.option(
    "--streams", type=click.IntRange(1), multiple=True, help="On each node at once; may be repeated.  [default: 1, 4]"
)
@click.option("--max-tokens", type=click.IntRange(2), default=64, show_default=True, help="Of each answer.")
@click.option(
    "--adapt",
    "adapt_s",
    type=click.FloatRange(0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long each mesh is used before at most, until experts stand where they are used; 0 for not at all.",
)
@click.option("--on-every-disk", is_flag=True, help="Each node has --model's files; else they fetch it from the first.")
@click.option(
    "--settle",
    "settle_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Measure after so long although experts still move.  [default: fail if they do after minutes]",
)
@click.option(
    "--drafts", multiple=True, metavar="MODE", help="Ask each mesh in turns with drafts auto, off, lookup or a number."
)
def mesh(
    model: Path | None,
    join: str,
    compare: tuple[str, ...],
    against: tuple[str, ...],
    turns: int,
    as_json: bool,
    topology: str,
    links: str,
    against_commands: tuple[str, ...],
    against_node: str,
    worker_command: str,
    streams: tuple[int, ...],
    max_tokens: int,
    adapt_s: float,
    on_every_disk: bool,
    settle_s: float | None,
    drafts: tuple[str, ...],
) -> None:
    """Put a load on a mesh over a topology file's links, all of it on this box.

    Each node is asked for texts of its domain: until experts have moved to where they are used, then one stream at a
    time, then --streams on every node at once. What the links cost is rounds a
    token times their round trip; everything else is computing and overhead. Servers given with --against get all
    streams of all nodes.
    """
    for mode in drafts:
        parse_draft_mode(mode)
    parsed = parse_topology(*read_data_file("topology", topology, "--topology"))
    if any(not parsed.links_of(name) for name in parsed.nodes) and len(parsed.nodes) > 1:
        raise ConfigError(f"--topology: {parsed.name} has a node without a link")

    rivals = Rivals(against_commands, against_node, worker_command)
    rivals.check(parsed, links == "namespaces")

    async def run(wires: Wires | None) -> list[MeshFigure]:
        wanted = Wanted(model, join, compare, against, on_every_disk, settle_s, rivals)
        found: list[MeshFigure] = []
        async with open_contestants(wanted, parsed, topology, _progress, wires) as contestants:
            for contestant in contestants if adapt_s else ():
                await _adapt(contestant, parsed, adapt_s)
            contestants = drafting_ways(contestants, drafts)
            first = 0  # every case has texts of its own: servers that keep prompts have not seen them
            for case in (0, *(streams or (1, 4))):

                async def load(contestant: Contestant, turn: int, case: int = case, first: int = first) -> Outcome:
                    return await _mesh_load(contestant, parsed, case, first + turn * max(1, case), max_tokens)

                words = f"{case} on each node" if case else "1 in all"
                _progress(words)
                figures = await in_turns(contestants, turns, load, _progress)
                for contestant in contestants:
                    rtt_ms = await mean_rtt_ms(contestant, parsed) if contestant.nodes else 0.0
                    figure = figures[contestant.name]
                    found.append(MeshFigure(case=words, contestant=contestant.name, load=figure, rtt_ms=rtt_ms))
                first += (turns + 1) * max(1, case)
        return found

    with open_wires(parsed) if links == "namespaces" else nullcontext() as wires:
        if wires is not None:
            _progress(round_trips(wires, parsed))
        figures = trio.run(run, wires)
        if wires is not None:
            _progress(wires.figures().words())
    _write(figures, mesh_table(figures), as_json)


def _other_prompts(domain: str) -> Iterator[str]:
    return (short_prompt(domain, number) for number in count(ADAPT_TEXTS_FROM))


async def _adapt(contestant: Contestant, topology: Topology, most_s: float) -> None:
    """Have experts move to where they are used: other texts than those of the measurement, of the same domains."""
    if not contestant.nodes:
        return
    uses = [
        Use(node, _other_prompts(place.domain or "prose"))
        for node, place in zip(contestant.nodes, topology.nodes.values(), strict=True)
    ]
    took_s = await adapt(uses, most_s)
    rest = (
        f"stand where they are used after {took_s:.0f} s" if took_s is not None else f"still move after {most_s:.0f} s"
    )
    _progress(f"{contestant.name}: experts {rest} of use")


async def _mesh_load(contestant: Contestant, topology: Topology, case: int, first: int, max_tokens: int) -> Outcome:
    """One turn: ``case`` streams on each node at once, or, where it is 0, one on each node after the other.

    Texts are numbered from ``first`` on.
    """
    per_node = max(1, case)
    asked = [
        TimedRequest(
            contestant.servers[number % len(contestant.servers)],
            short_prompt(node.domain or "prose", first + i),
            max_tokens,
        )
        for number, node in enumerate(topology.nodes.values())
        for i in range(per_node)
    ]
    if case:
        return await run_load(asked)
    outcomes = [await run_load([request]) for request in asked]
    return Outcome(
        answers=[answer for outcome in outcomes for answer in outcome.answers],
        took_s=sum(outcome.took_s for outcome in outcomes),
        late_s=[late_s for outcome in outcomes for late_s in outcome.late_s],
    )
