"""Draws a graph of nodes and links as SVG, PNG or Graphviz DOT, without a drawing library for the first and the last.

A picture is laid out once, as a list of strokes, discs, arcs and labels in pixels; each format only writes these down.
Graphs come as networkx graphs whose attributes say what to draw, so that a live mesh and a topology file look alike:

- nodes: ``label``, ``detail`` (second line), ``size`` (area of the disc, any unit), ``share`` (0 to 1, the arc that is
  full; None draws no arc), ``faint`` (drawn grey and dashed: not there);
- edges: ``label``, ``distance`` (1 is near; longer edges are drawn longer where the graph allows).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx

from meshmoe.core.errors import ConfigError

WIDTH_PX, HEIGHT_PX = 960, 640
_MARGIN_PX = 130
_RADIUS_PX_MIN, _RADIUS_PX_MAX = 26.0, 52.0
_FONT_PX, _SMALL_PX = 16, 13

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#6b6ecf")
"""Okabe and Ito's colours, which people with any colour vision can tell apart, and two more."""

INK, FAINT, PAPER = "#1b1f24", "#98a1ab", "#ffffff"


class Stroke(NamedTuple):
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    faint: bool


class Disc(NamedTuple):
    """A node: a ring of which ``share`` is full."""

    x: float
    y: float
    radius: float
    share: float | None
    colour: str
    faint: bool


class Label(NamedTuple):
    """Text centred on a point, with paper behind it."""

    x: float
    y: float
    text: str
    size_px: int
    bold: bool


Shape = Stroke | Disc | Label
Picture = list[Shape]


def save_graph(graph: nx.Graph[str], path: Path, title: str) -> None:
    """Draw ``graph`` into a file; its name's ending says how.

    Raises:
        ConfigError: The ending is none of .svg, .png and .dot, the file cannot be written, or PNG lacks Pillow.
    """
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise ConfigError(f"{path}: a graph is drawn as .svg, .png or .dot")
    try:
        write(graph, path, title)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def picture(graph: nx.Graph[str]) -> Picture:
    """Lay ``graph`` out."""
    places = _places(graph)
    size_max = max((data["size"] for _, data in graph.nodes(data=True)), default=1) or 1
    strokes: Picture = []
    discs: Picture = []
    labels: Picture = []
    for a, b in graph.edges:
        data = graph.edges[a, b]
        (x1, y1), (x2, y2) = places[a], places[b]
        strokes.append(Stroke(x1, y1, x2, y2, bool(graph.nodes[a]["faint"] or graph.nodes[b]["faint"])))
        if data.get("label"):
            labels.append(Label((x1 + x2) / 2, (y1 + y2) / 2, data["label"], _SMALL_PX, False))
    for i, name in enumerate(graph):
        (x, y), data = places[name], graph.nodes[name]
        radius = max(_RADIUS_PX_MIN, _RADIUS_PX_MAX * math.sqrt(data["size"] / size_max))
        discs.append(Disc(x, y, radius, data["share"], PALETTE[i % len(PALETTE)], data["faint"]))
        labels.append(Label(x, y + radius + 16, data["label"], _FONT_PX, True))
        if data.get("detail"):
            labels.append(Label(x, y + radius + 34, data["detail"], _SMALL_PX, False))
    return strokes + discs + labels


def _places(graph: nx.Graph[str]) -> dict[str, tuple[float, float]]:
    """Where each node's middle is, in pixels."""
    if len(graph) > 2 and graph.number_of_edges() and nx.is_connected(graph):
        raw = nx.kamada_kawai_layout(graph, weight="distance")
    else:
        raw = nx.circular_layout(graph)
    # Two nodes side by side, a triangle on its base: as people draw them.
    points = {name: (float(x), float(y)) for name, (x, y) in raw.items()}
    spans = []
    for axis in (0, 1):
        values = [point[axis] for point in points.values()] or [0.0]
        spans.append((min(values), max(values) - min(values)))
    room = (WIDTH_PX - 2 * _MARGIN_PX, HEIGHT_PX - 2 * _MARGIN_PX)

    def scaled(value: float, axis: int) -> float:
        low, span = spans[axis]
        share = (value - low) / span if span > 1e-6 else 0.5
        return _MARGIN_PX + share * room[axis]

    return {name: (scaled(x, 0), scaled(y, 1)) for name, (x, y) in points.items()}


# -- SVG ----------------------------------------------------------------------------------------------------

_STYLE = f"""
  text {{ font-family: ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle;
         dominant-baseline: middle; fill: {INK}; paint-order: stroke; stroke: {PAPER}; stroke-width: 5px;
         stroke-linejoin: round; }}
  .b {{ font-weight: 600; }}
  .paper {{ fill: {PAPER}; }}
  .link {{ stroke: {FAINT}; stroke-width: 1.5; }}
  .faint {{ stroke-dasharray: 5 5; }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #e6e9ec; stroke: #14171a; }}
    .paper {{ fill: #14171a; }}
  }}
"""


def _svg(graph: nx.Graph[str], path: Path, title: str) -> None:
    path.write_text(svg(graph, title), encoding="utf-8")


def svg(graph: nx.Graph[str], title: str) -> str:
    """The drawing as an SVG document, legible on light and on dark paper."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img">',
        f"<title>{_escaped(title)}</title>",
        f"<style>{_STYLE}</style>",
        '<rect class="paper" width="100%" height="100%"/>',
    ]
    for shape in picture(graph):
        match shape:
            case Stroke(x1, y1, x2, y2, faint):
                dashed = " faint" if faint else ""
                lines.append(f'<line class="link{dashed}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
            case Disc():
                lines += _svg_disc(shape)
            case Label(x, y, text, size_px, bold):
                weight = ' class="b"' if bold else ""
                lines.append(f'<text{weight} x="{x:.1f}" y="{y:.1f}" font-size="{size_px}">{_escaped(text)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _svg_disc(disc: Disc) -> list[str]:
    colour = FAINT if disc.faint else disc.colour
    place = f'cx="{disc.x:.1f}" cy="{disc.y:.1f}" r="{disc.radius:.1f}"'
    dashed = ' class="paper faint"' if disc.faint else ' class="paper"'
    drawn = [
        f'<circle{dashed} {place} stroke="{colour}" stroke-width="2"/>',
        f'<circle {place} fill="{colour}" fill-opacity="0.16"/>',
    ]
    if disc.share:
        around = 2 * math.pi * disc.radius
        drawn.append(
            f'<circle {place} fill="none" stroke="{colour}" stroke-width="8" '
            f'stroke-dasharray="{around * min(1.0, disc.share):.1f} {around:.1f}" '
            f'transform="rotate(-90 {disc.x:.1f} {disc.y:.1f})"/>'
        )
    return drawn


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# -- PNG ----------------------------------------------------------------------------------------------------

_FINER = 3
"""Pillow draws without smoothing: draw larger, then shrink."""


def _png(graph: nx.Graph[str], path: Path, _title: str) -> None:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise ConfigError("PNG needs Pillow: pip install 'meshmoe[png]', or draw an .svg") from None

    image = Image.new("RGB", (WIDTH_PX * _FINER, HEIGHT_PX * _FINER), PAPER)
    draw = ImageDraw.Draw(image)
    fonts: dict[int, Any] = {px: ImageFont.load_default(px * _FINER) for px in (_FONT_PX, _SMALL_PX)}
    for shape in picture(graph):
        match shape:
            case Stroke(x1, y1, x2, y2, _):
                draw.line([x1 * _FINER, y1 * _FINER, x2 * _FINER, y2 * _FINER], FAINT, 2 * _FINER)
            case Disc(x, y, radius, share, colour, faint):
                colour = FAINT if faint else colour
                box = [(x - radius) * _FINER, (y - radius) * _FINER, (x + radius) * _FINER, (y + radius) * _FINER]
                draw.ellipse(box, fill=_blend(colour, 0.16), outline=colour, width=2 * _FINER)
                if share:
                    draw.arc(box, -90, -90 + 360 * min(1.0, share), fill=colour, width=8 * _FINER)
            case Label(x, y, text, size_px, bold):
                at, width = (x * _FINER, y * _FINER), _FINER // 3 if bold else 0
                draw.text(at, text, fill=PAPER, font=fonts[size_px], anchor="mm", stroke_width=3 * _FINER)
                draw.text(at, text, fill=INK, font=fonts[size_px], anchor="mm", stroke_width=width)
    image.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS).save(path, format="PNG", optimize=True)


def _blend(colour: str, share: float) -> tuple[int, int, int]:
    """``colour`` with so much opacity on white paper."""
    red, green, blue = (round(255 - share * (255 - int(colour[i : i + 2], 16))) for i in (1, 3, 5))
    return red, green, blue


# -- DOT ----------------------------------------------------------------------------------------------------


def _dot(graph: nx.Graph[str], path: Path, title: str) -> None:
    lines = [f"graph {_quoted(title)} {{", "  layout=neato; overlap=false;", "  node [shape=circle];"]
    for name, data in graph.nodes(data=True):
        style = "dashed" if data["faint"] else "solid"
        text = "\n".join(filter(None, (data["label"], data.get("detail"))))
        lines.append(f"  {_quoted(name)} [label={_quoted(text)}, style={style}];")
    for a, b in graph.edges:
        data = graph.edges[a, b]
        lines.append(
            f"  {_quoted(a)} -- {_quoted(b)} [label={_quoted(data.get('label') or '')}, len={data['distance']:.2f}];"
        )
    path.write_text("\n".join([*lines, "}", ""]), encoding="utf-8")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


_WRITERS: dict[str, Callable[[nx.Graph[str], Path, str], None]] = {".svg": _svg, ".png": _png, ".dot": _dot}
