"""``meshmoe bench watchers``: what people who look on cost those who wait for tokens."""

from __future__ import annotations

import re
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import click
import msgspec
import psutil
import trio

from meshmoe.bench_engine.load import Outcome, TimedRequest, run_load
from meshmoe.bench_engine.load_figures import LoadFigure, load_table
from meshmoe.bench_engine.openai_stream import ServerError
from meshmoe.bench_engine.texts import OPENINGS, short_prompt
from meshmoe.bench_engine.watchers import looking_on
from meshmoe.cli.bench_contest import Contestant, Wanted, in_turns, open_contestants
from meshmoe.cli.local_mesh import LocalNode
from meshmoe.core.config import parse_topology
from meshmoe.node.data_files import read_data_file

_PAGE = re.compile(r"page: http://127\.0\.0\.1:(\d+)/")


@click.command()
@click.option("--watchers", default=50, show_default=True, type=click.IntRange(0), help="That follow the status.")
@click.option("--pages", default=20, show_default=True, type=click.IntRange(0), help="Open topology pages.")
@click.option("--topology", metavar="FILE", help="Of the mesh.  [default: one node that holds everything]")
@click.option("--streams", default=4, show_default=True, type=click.IntRange(1), help="On the node that is watched.")
@click.option("--max-tokens", default=1500, show_default=True, type=click.IntRange(2), help="Of each.")
@click.option("--turns", default=7, show_default=True, type=click.IntRange(1), help="Medians of this many.")
@click.option("--json", "as_json", is_flag=True, help="All numbers, for programs.")
def watchers(
    watchers: int, pages: int, topology: str | None, streams: int, max_tokens: int, turns: int, as_json: bool
) -> None:
    """Measure tokens of one node with and without people who look on.

    The same node is measured in turns, alone and watched. Watchers are connected before a turn's load begins, and take
    what the node sends without drawing it.
    """

    def progress(words: str) -> None:
        click.echo(words, err=True)

    async def run() -> tuple[dict[str, LoadFigure], int, int]:
        events = received_bytes = 0
        parsed = parse_topology(*read_data_file("topology", topology, "--topology")) if topology is not None else None
        wanted = Wanted(None, "--http 127.0.0.1:0")
        async with open_contestants(wanted, parsed, topology or "", progress) as (mesh,):
            node = mesh.nodes[0]
            port = await _page_port(node)
            server = mesh.servers[0]

            async def load(contestant: Contestant, turn: int) -> Outcome:
                nonlocal events, received_bytes
                domains = list(OPENINGS)
                asked = [
                    TimedRequest(server, short_prompt(domains[i % 5], turn * streams + i // 5), max_tokens)
                    for i in range(streams)
                ]
                async with AsyncExitStack() as stack:
                    if contestant is not watched:
                        return await run_load(asked)
                    looking = looking_on(node.socket_path, ("127.0.0.1", port), watchers, pages)
                    seen = await stack.enter_async_context(looking)
                    outcome = await run_load(asked)
                    events, received_bytes = events + seen.events, received_bytes + seen.received_bytes
                return outcome

            alone = Contestant("unwatched", mesh.servers[:1], mesh.nodes[:1])
            watched = Contestant(f"{watchers} watchers, {pages} pages", mesh.servers[:1], mesh.nodes[:1])
            return await in_turns([alone, watched], turns, load, progress), events, received_bytes

    figures, events, received_bytes = trio.run(run)
    machine = psutil.getloadavg()
    if as_json:
        found = {"load": machine, "figures": figures, "events": events, "received_bytes": received_bytes}
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return
    click.echo(load_table(figures))
    click.echo(f"\nwatchers received {events} events, {received_bytes / 2**20:.1f} MiB with the page's files")
    click.echo(f"load of this machine: {', '.join(f'{one:.1f}' for one in machine)}")


async def _page_port(node: LocalNode) -> int:
    """Of the node's page, as its log tells."""
    with trio.move_on_after(10):
        while True:
            text = await trio.Path(Path(node.log_path)).read_text()
            if found := _PAGE.search(text):
                return int(found[1])
            await trio.sleep(0.1)
    raise ServerError(f"node {node.name} does not say where its page is: {node.last_words()}")
