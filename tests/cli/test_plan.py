"""``meshmoe plan`` and ``meshmoe bench placement`` as users call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import Result

Invoke = Callable[..., Result]

TWO = """
[default_link]
preset = "wifi"
[nodes.a]
capacity = "70%"
domain = "prose"
[nodes.b]
capacity = "50%"
domain = "python"
"""


def test_plan_predicts_for_every_policy_and_draws(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TWO)
    result = invoke("plan", str(tmp_path / "two.toml"), "--json", "--graph", str(tmp_path / "out.svg"))
    assert result.exit_code == 0, result.output
    found = {one["policy"]: one for one in json.loads(result.stdout)}
    assert len(found) == 8
    ours, drafted = found["meshmoe"], found["for drafts"]
    assert all(ours["token_ms"] <= other["token_ms"] for other in found.values())
    for one in found.values():
        assert one["drafted_ms"] <= one["token_ms"] and one["drafted_rounds"] <= one["rounds"]
        assert one["drafts"] > 0 and one["tokens_per_pass"] > 1 and 0 < one["acceptance"] < 1
    assert drafted["drafted_ms"] <= ours["drafted_ms"] and drafted["token_ms"] > ours["token_ms"]
    assert 0 < ours["rounds"] <= 8 and 0 < ours["hit"] < 1
    for node in ours["nodes"]:
        assert 0 < node["held_bytes"] <= node["capacity_bytes"]
        assert node["token_ms"] > 6.25 * node["rounds"]  # each waits for 5 ms, 1 ms of jitter and a call
    picture = ElementTree.fromstring((tmp_path / "out.svg").read_text())
    bars = [e for e in picture.iter() if e.attrib.get("fill") == "#4a7ab5"]
    assert len(bars) == 2 * 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TWO.replace('capacity = "70%"\n', ""), "node a has no capacity"),
        (TWO.replace("70%", "40%"), "cannot hold the model"),
        (TWO.replace("[default_link]\npreset = \"wifi\"\n", ""), "does not reach"),
    ],
)  # fmt: skip
def test_plan_says_what_is_wrong(invoke: Invoke, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "two.toml").write_text(text)
    result = invoke("plan", str(tmp_path / "two.toml"))
    assert result.exit_code != 0
    assert words in result.output + result.stderr
