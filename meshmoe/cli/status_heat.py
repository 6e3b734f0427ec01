"""The heat map of ``meshmoe status --experts``: every expert of every layer, by who holds it.

A cell is a letter where one node holds the expert, a digit where several do, and a cross where nobody does, so that it
reads without colour too; on a terminal it also has the colour of its (first) holder.
"""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_uppercase

from rich.console import Console, RenderableType
from rich.text import Text

from meshmoe.cli.drawing import PALETTE
from meshmoe.node.status import NodeStatus

_GAP_EVERY = 8


def heat_map(console: Console, status: NodeStatus) -> Iterator[RenderableType]:
    """The map with its legend; one line where the model is not known yet."""
    coverage = status.coverage
    if coverage is None:
        yield Text("the experts are not known yet", "yellow")
        return
    letters = ascii_uppercase + ascii_uppercase.lower()
    sizes = [0] * len(status.peers)
    for experts in coverage.holders_by_layer:
        for holders in experts:
            for holder in holders:
                sizes[holder] += 1
    legend = Text("held by  ", "dim")
    for i, peer in enumerate(status.peers):
        if sizes[i]:
            legend.append(f"{letters[i % len(letters)]} {peer.node} {sizes[i]}", _style(i)).append("   ")
    legend.append("2-9 so many nodes   ", "").append("x nobody", "bold red")
    yield legend
    margin = len(f"layer {len(coverage.holders_by_layer) - 1}") + 2
    widest = max((len(experts) for experts in coverage.holders_by_layer), default=0)
    room = max(_GAP_EVERY, console.width - margin)
    in_a_row = min(widest, room // (_GAP_EVERY + 1) * _GAP_EVERY or _GAP_EVERY)
    header = Text(" " * margin, "dim")
    for begin in range(0, in_a_row, _GAP_EVERY):
        header.append(f"{begin:<{_GAP_EVERY}} ", "dim")
    yield header
    for layer, experts in enumerate(coverage.holders_by_layer):
        for begin in range(0, len(experts), in_a_row):
            name = f"layer {layer}" if begin == 0 else f"  +{begin}"
            line = Text(f"{name:<{margin}}", "dim")
            for index in range(begin, min(begin + in_a_row, len(experts))):
                if index > begin and (index - begin) % _GAP_EVERY == 0:
                    line.append(" ")
                holders = experts[index]
                if not holders:
                    line.append("x", "bold red")
                elif len(holders) == 1:
                    line.append(letters[holders[0] % len(letters)], _style(holders[0]))
                else:
                    line.append(str(min(len(holders), 9)), f"bold {_style(holders[0])}")
            yield line


def _style(holder: int) -> str:
    return PALETTE[holder % len(PALETTE)]
