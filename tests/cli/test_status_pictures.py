from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from rich.console import Console

from meshmoe.cli.drawing import picture
from meshmoe.cli.status_graph import status_graph
from meshmoe.cli.status_heat import heat_map
from tests.api.scripted import ScriptedService
from tests.api.serving import Served

Invoke = Callable[..., Result]


def test_svg(served: Served, invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("status", "--graph", str(tmp_path / "mesh.svg")).exit_code == 0
    root = ElementTree.parse(tmp_path / "mesh.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "b-with-a-longer-name" in texts
    assert "1.25 ms, 500 Mbit/s" in texts
    assert "50% of the experts" in texts
    assert "38% of the experts, suspect" in texts


def test_png(served: Served, invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("status", "--graph", str(tmp_path / "mesh.png")).exit_code == 0
    with Image.open(tmp_path / "mesh.png") as image:
        assert image.size == (960, 640)
        assert len(image.getcolors(1 << 20) or []) > 50


def test_dot(served: Served, invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("status", "--graph", str(tmp_path / "mesh.dot")).exit_code == 0
    text = (tmp_path / "mesh.dot").read_text()
    assert '"a" -- "b-with-a-longer-name" [label="1.25 ms, 500 Mbit/s", len=1.00];' in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--graph", "mesh.gif"], "drawn as .svg, .png or .dot"),
        (["--graph", "nowhere/mesh.svg"], "cannot write nowhere/mesh.svg: No such file or directory"),
        (["--graph", "mesh.svg", "--json"], "--graph draws one picture"),
        (["--experts", "--json"], "--json has the holders"),
    ],
)
def test_what_cannot_be_drawn(served: Served, invoke: Invoke, arguments: list[str], words: str) -> None:
    result = invoke("status", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_no_two_nodes_are_drawn_on_each_other() -> None:
    status = ScriptedService().status()
    for count in (1, 2, 3, 7):
        peers = [status.peers[0]]
        for i in range(1, count):
            other = ScriptedService().status().peers[1]
            other.node = f"node-{i}"
            peers.append(other)
        status.peers = peers
        discs = [shape for shape in picture(status_graph(status)) if type(shape).__name__ == "Disc"]
        assert len({(round(disc.x), round(disc.y)) for disc in discs}) == count  # type: ignore[union-attr]


def test_experts_in_a_pipe(served: Served, invoke: Invoke) -> None:
    lines = invoke("status", "--experts").stdout.splitlines()
    assert lines[0].startswith("held by  A a 4   B b-with-a-longer-name 3   2-9 so many nodes   x nobody")
    assert [line.split() for line in lines[2:]] == [["layer", "0", "AABB"], ["layer", "1", "AABx"]]


def test_experts_held_twice_and_wide_layers() -> None:
    status = ScriptedService().status()
    assert status.coverage is not None
    status.coverage.holders_by_layer = [[[0], [0, 1]] + [[1]] * 30]
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=32, color_system=None, highlight=False)
    for line in heat_map(console, status):
        console.print(line)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 32
    assert "layer 0  A2BBBBBB BBBBBBBB" in text
    assert "  +16    BBBBBBBB BBBBBBBB" in text


def test_experts_before_they_are_known() -> None:
    status = ScriptedService().status()
    status.coverage = None
    out = io.StringIO()
    console = Console(file=out)
    for line in heat_map(console, status):
        console.print(line)
    assert out.getvalue() == "the experts are not known yet\n"
