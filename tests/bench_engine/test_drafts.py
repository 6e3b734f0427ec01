"""The bench of drafts on a tiny model: every mode and holding is measured, and the texts are compared."""

from __future__ import annotations

import json

import torch
from click.testing import CliRunner

from meshmoe.cli.bench import bench
from meshmoe.model.tiny import make_tiny_checkpoint


def test_modes_links_and_holdings(tmp_path):
    make_tiny_checkpoint("qwen3_moe", tmp_path / "tiny", dtype=torch.bfloat16)
    options = ["--tokens", "8", "--turns", "1", "--rtt-ms", "0", "--rtt-ms", "2", "--drafts", "off", "--drafts", "3"]
    done = CliRunner().invoke(bench, ["drafts", "--model", str(tmp_path / "tiny"), *options, "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)["figures"]
    assert [(f["rtt_ms"], f["held"], f["mode"]) for f in figures] == [
        (rtt_ms, held, mode) for rtt_ms in (0.0, 2.0) for held in ("spread", "layers") for mode in ("off", "3")
    ]
    for figure in figures:
        assert figure["same"]
        assert figure["rounds_per_token"] > 0
        assert (figure["acceptance"] is None) == (figure["mode"] == "off")


def test_a_mode_that_makes_no_sense(tmp_path):
    make_tiny_checkpoint("qwen3_moe", tmp_path / "tiny", dtype=torch.bfloat16)
    done = CliRunner().invoke(bench, ["drafts", "--model", str(tmp_path / "tiny"), "--drafts", "many", "--turns", "1"])
    assert done.exit_code != 0
    assert "say auto, off, lookup" in str(done.exception)
