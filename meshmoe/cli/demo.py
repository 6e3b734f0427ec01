"""``meshmoe demo``: a whole mesh on this box, a prompt for every node, every token compared with one node's."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import click
import trio
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from meshmoe.cli.adapting import Use, adapt
from meshmoe.cli.local_mesh import LocalMesh, LocalNode, open_local_mesh
from meshmoe.core.config import Topology, parse_topology
from meshmoe.core.errors import ConfigError, MeshmoeError
from meshmoe.core.ids import NodeId
from meshmoe.core.links import LinkShape
from meshmoe.core.units import format_duration, format_rate
from meshmoe.node.data_files import read_data_file
from meshmoe.node.preparing import prepare

ADAPT_S_MAX = 90.0
"""How long the demo waits for experts to move to where they are used."""

ALONE = "alone"
"""Name of the node that holds the whole model and writes the texts to compare with."""

PROMPTS = {
    "prose": "The server process is started by the administrator. When a client connects, it",
    "python": "def read_lines(path):\n    with open(path) as file:\n        for line in",
    "c": "#ifndef _NET_BUFFER_H\n#define _NET_BUFFER_H\n\nstruct buffer {\n",
    "dictionary": "lantern, noun: a lamp with",
    "arithmetic": "12 + 7 = 19\n25 + 4 = 29\n31 + 8 =",
}
"""What a box of each domain is asked: beginnings of the kind of text that the bundled model has learned."""


@dataclass
class Stream:
    """One node's text as it comes."""

    node: str
    domain: str
    prompt: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in a chunk."""
        self.report = event.get("meshmoe", self.report)
        for choice in event["choices"]:
            self.text += choice["text"]
            self.token_ids += choice.get("meshmoe", {}).get("token_ids", ())


@click.command()
@click.option(
    "--topology", default="three-rooms", show_default=True, metavar="FILE", help="A file, or a name in topology/."
)
@click.option("--model", type=click.Path(path_type=Path), metavar="DIR", help="Another model than the bundled one.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="Of each text.")
@click.option("--prompt", metavar="TEXT", help="Ask every node this, instead of a text of its domain.")
def demo(topology: str, model: Path | None, max_tokens: int, prompt: str | None) -> None:
    """Run a whole mesh on this box and check what it writes.

    Starts every node of a topology file as a process with its capacity, joins them over emulated links, asks each one
    for a text, shows who holds which experts, uses the nodes until experts have moved to where they are used, asks for
    the same texts again, and compares every token with what a single node writes.
    """
    text, where = read_data_file("topology", topology, "--topology")
    parsed = parse_topology(text, where)
    if len({name for pair in parsed.links for name in pair}) < len(parsed.nodes) > 1:
        raise ConfigError(f"{where}: some node has no link: give [default_link] or more [[links]]")
    identical = trio.run(_demo, parsed, topology, model, max_tokens, prompt)
    if not identical:
        raise MeshmoeError("the mesh wrote other tokens than one node: please report this with the output above")


async def _demo(
    topology: Topology, topology_name: str, model: Path | None, max_tokens: int, prompt: str | None
) -> bool:
    console = Console(highlight=False)
    console.print(f"[bold]{topology.name}[/]: {topology.description}")
    for (a, b), shape in topology.links.items():
        console.print(f"  {a} - {b}: {_link_words(shape)}")
    with tempfile.TemporaryDirectory(prefix="meshmoe-", ignore_cleanup_errors=True) as directory:
        async with open_local_mesh(Path(directory)) as mesh:
            started = trio.current_time()
            with console.status("starting the nodes ..."):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(prepare)  # else nodes do it at their first decision
                    await _start(mesh, topology, topology_name, model)
            console.print(f"{len(topology.nodes)} nodes serve after {trio.current_time() - started:.0f} s")
            names = list(topology.nodes)
            first = mesh.nodes[names[0]]
            await _show_holdings(console, first)
            before, after = (_streams(topology, prompt) for _ in range(2))
            await _ask_all(console, mesh, before, max_tokens)
            with console.status("every node writes texts of its domain; experts move to where they are used ..."):
                uses = [Use(mesh.nodes[NodeId(stream.node)], repeat(stream.prompt)) for stream in before]
                adapted_s = await adapt(uses, ADAPT_S_MAX)
            if adapted_s is None:
                console.print(f"experts were still moving after {ADAPT_S_MAX:.0f} s of use")
            else:
                console.print(f"experts stand where they are used after {adapted_s:.0f} s of use")
            await _show_holdings(console, first)
            await _ask_all(console, mesh, after, max_tokens, show=False)
            return await _compare(console, mesh, before, after, max_tokens)


def _streams(topology: Topology, prompt: str | None) -> list[Stream]:
    return [
        Stream(name, node.domain or "prose", prompt or PROMPTS.get(node.domain or "", PROMPTS["prose"]))
        for name, node in topology.nodes.items()
    ]


async def _start(mesh: LocalMesh, topology: Topology, topology_name: str, model: Path | None) -> None:
    own = ["--model", str(model)] if model is not None else []
    for name, node in topology.nodes.items():
        arguments = ["--links", topology_name]
        if node.profile is not None:
            arguments += ["--profile", node.profile]
        if node.capacity is not None:
            arguments += ["--capacity", node.capacity]
        if node.threads is not None:
            arguments += ["--threads", str(node.threads)]
        mesh.add(name, *arguments)
    first, *others = topology.nodes
    mesh.nodes[first].start(*own)
    alone = mesh.add(ALONE, "--capacity", "100%", "--threads", "1")
    alone.start(*own)
    address = await mesh.join_word(first)
    for name in others:
        mesh.nodes[name].start("--peer", address)
    await mesh.wait_serving(*topology.nodes)
    await mesh.wait_settled(*topology.nodes)
    await mesh.wait_serving(ALONE)


async def _show_holdings(console: Console, node: LocalNode) -> None:
    status = await node.status()
    names = [peer["node"] for peer in status["peers"]]
    layers = status["coverage"]["holders_by_layer"]
    table = Table(title="experts held, by layer", title_justify="left", box=None, pad_edge=False)
    table.add_column("node")
    for layer in range(len(layers)):
        table.add_column(str(layer), justify="right")
    table.add_column("all", justify="right", style="bold")
    for i, name in sorted(enumerate(names), key=lambda item: item[1]):
        counts = [sum(i in holders for holders in layer) for layer in layers]
        table.add_row(name, *map(str, counts), str(sum(counts)))
    console.print(table)


async def _ask_all(
    console: Console, mesh: LocalMesh, streams: list[Stream], max_tokens: int, *, show: bool = True
) -> None:
    async def ask(stream: Stream) -> None:
        body = {"model": "default", "prompt": stream.prompt, "max_tokens": max_tokens, "temperature": 0}
        async for event in mesh.nodes[NodeId(stream.node)].stream(body):
            stream.add(event)

    def panels() -> Columns:
        return Columns([_panel(stream) for stream in streams], equal=True, expand=True)

    with Live(panels(), console=console, refresh_per_second=12, transient=True) as live:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as asking:
                nursery.start_soon(_refresh, live, panels)
                for stream in streams:
                    asking.start_soon(ask, stream)
            nursery.cancel_scope.cancel()
    for stream in streams if show else ():
        console.print(_panel(stream))


async def _refresh(live: Live, panels: Any) -> None:
    while True:
        live.update(panels())
        await trio.sleep(0.08)


def _panel(stream: Stream) -> Panel:
    text = Text(stream.prompt, style="dim") + Text(stream.text, style="default")
    return Panel(text, title=f"{stream.node} ({stream.domain})", title_align="left")


async def _compare(
    console: Console, mesh: LocalMesh, before: list[Stream], after: list[Stream], max_tokens: int
) -> bool:
    table = Table(title="the same prompts before and after", title_justify="left", box=None, pad_edge=False)
    headings = ("node", "tokens", "local experts", "rounds a token", "tokens/s", "one node alone", "identical")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "node" else "right")
    identical = True
    alone = mesh.nodes[NodeId(ALONE)]
    for one, two in zip(before, after, strict=True):
        body = {"model": "default", "prompt": one.prompt, "max_tokens": max_tokens, "temperature": 0}
        reference = await alone.complete(body)
        expected = reference["choices"][0]["meshmoe"]["token_ids"]
        same = one.token_ids == expected and two.token_ids == expected
        identical &= same
        table.add_row(
            one.node,
            str(len(one.token_ids)),
            *(
                f"{one.report[key] * scale:.{digits}f}{sign} > {two.report[key] * scale:.{digits}f}{sign}"
                for key, scale, digits, sign in (
                    ("hit_ratio", 100, 0, "%"),
                    ("rounds_per_token", 1, 2, ""),
                    ("tokens_per_s", 1, 1, ""),
                )
            ),
            f"{reference['meshmoe']['tokens_per_s']:.1f}",
            "yes" if same else "[bold red]NO[/]",
        )
    console.print(table)
    console.print(f"identical to one node, before and after: {'yes' if identical else 'no'}")
    return identical


def _link_words(shape: LinkShape) -> str:
    words = f"{format_duration(shape.rtt_s)} round trip, {format_rate(shape.rate_bytes_per_s)}"
    if shape.jitter_s:
        words += f", up to {format_duration(shape.jitter_s)} jitter"
    return words + (f", {shape.loss:.1%} loss" if shape.loss else "")
