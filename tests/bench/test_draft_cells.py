"""The cells of drafts on the bundled model: what is reckoned adds up, whatever else the box does."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from meshmoe.bench.draft_cells import DraftCell, draft_cells_table
from meshmoe.bench.placement import CALL_S
from meshmoe.cli.bench import bench
from meshmoe.core.links import LINK_PRESETS


def test_links_are_reckoned_and_texts_compared():
    options = ["--texts", "1", "--tokens", "12", "--redundancy", "1.2", "--drafts", "off", "--drafts", "3"]
    done = CliRunner().invoke(bench, ["draft-cells", "--link", "lan", "--link", "wan", *options, "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)["figures"]
    assert [(f["link"], f["mode"]) for f in figures] == [
        (link, mode) for link in ("lan", "wan") for mode in ("off", "3")
    ]
    for figure in figures:
        assert figure["same"]
        assert figure["tokens_per_s"] == pytest.approx(1e3 / (figure["own_ms"] + figure["link_ms"]))
        least_ms = 1e3 * (LINK_PRESETS[figure["link"]].rtt_s + CALL_S) * figure["rounds_per_token"]
        assert least_ms < figure["link_ms"] < 1.2 * least_ms + 1.0, "round trips, and some bytes"
        assert (figure["acceptance"] is None) == (figure["mode"] == "off")
        assert figure["tokens_per_pass"] >= 1.0


def test_the_table_compares_auto_with_the_best_other_mode():
    place = {"link": "wan", "redundancy": 1.2, "policy": "meshmoe", "same": True}
    common = {**place, "own_ms": 1.0, "link_ms": 1.0, "rounds_per_token": 1.0}
    more = {"tokens_per_pass": 1.0, "drafted_per_pass": 0.0, "acceptance": None}
    rates = {"off": 10.0, "4": 20.0, "auto": 21.0}
    cells = [DraftCell(mode=mode, tokens_per_s=rate, **common, **more) for mode, rate in rates.items()]
    assert draft_cells_table(cells).splitlines()[-1] == "| 1.2 | wan | meshmoe | 4 | 1.05 | 2.10 |"
