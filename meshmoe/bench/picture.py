"""A mesh as a picture: its nodes, its links, and which share of each layer every node holds."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

import networkx as nx

from meshmoe.core.config import Topology
from meshmoe.core.links import LinkShape
from meshmoe.core.units import format_duration, format_rate, format_size
from meshmoe.placement.world import Holders, World

WIDTH, HEIGHT, BOX = 900, 700, 150
ROW = 8
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
"""Of kinds of links, the fastest first; told apart by colour-blind people, too (Okabe and Ito 2008)."""


def svg(topology: Topology, world: World, holders: Holders) -> str:
    """Draw a placement.

    Args:
        topology: For the links' own values.
        world: Sizes and capacities; its nodes are the topology's.
        holders: Who holds what.

    Returns:
        An SVG document. In each box, a bar for every layer, the first on top, as long as the share that is held.
    """
    graph = nx.complete_graph(len(world.nodes))
    places = {
        world.nodes[i]: (WIDTH / 2 + 0.36 * WIDTH * x, HEIGHT / 2 + 0.34 * HEIGHT * y)
        for i, (x, y) in nx.circular_layout(graph).items()
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12">',
        "<style>text { font-family: sans-serif }</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    parts += _links(topology, places)
    exists = world.shape.exists
    height = 44 + ROW * world.shape.layers
    for number, name in enumerate(world.nodes):
        x, y = places[name][0] - BOX / 2, places[name][1] - height / 2
        held = int(world.shape.expert_bytes[holders[number]].sum())
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{height}" rx="6" fill="#f4f6fa" stroke="#345"/>'
        )
        parts.append(_text(places[name][0], y + 16, name, "#000"))
        sizes = f"{format_size(held)} of {format_size(world.specs[number].capacity_bytes)}"
        parts.append(_text(places[name][0], y + 32, sizes, "#345"))
        for layer in range(world.shape.layers):
            share = holders[number, layer].sum() / exists[layer].sum()
            top, length = y + 38 + ROW * layer, share * (BOX - 20)
            parts.append(
                f'<rect x="{x + 10:.0f}" y="{top:.0f}" width="{length:.1f}" height="{ROW - 2}" fill="#4a7ab5"/>'
            )
    return "\n".join([*parts, "</svg>\n"])


def _links(topology: Topology, places: Mapping[str, tuple[float, float]]) -> list[str]:
    """The lines, one colour a kind of link, with a legend; where there are too many kinds, with words on each."""
    kinds = {_words(link): link.rtt_s for link in topology.links.values()}
    few = len(kinds) <= len(COLOURS)
    colours = dict(zip(sorted(kinds, key=lambda words: kinds[words]), COLOURS, strict=False)) if few else {}
    parts = []
    for (a, b), link in topology.links.items():
        (x1, y1), (x2, y2) = places[a], places[b]
        colour = colours.get(_words(link), "#999")
        ends = f'x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}"'
        parts.append(f'<line {ends} stroke="{colour}" stroke-width="1.5"/>')
        if not few:
            parts.append(_text((x1 + x2) / 2, (y1 + y2) / 2, _words(link), "#555"))
    for number, (words, colour) in enumerate(colours.items()):
        top = 20 + 18 * number
        parts.append(f'<line x1="16" y1="{top}" x2="46" y2="{top}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="54" y="{top + 4}" fill="#333">{escape(words)}</text>')
    return parts


def _words(link: LinkShape) -> str:
    """A link in words: two that read the same are drawn the same."""
    return f"{format_duration(link.rtt_s)}, {format_rate(link.rate_bytes_per_s)}"


def _text(x: float, y: float, words: str, colour: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" fill="{colour}">{escape(words)}</text>'
