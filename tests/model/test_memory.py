"""A node's memory is the trunk and the experts that it holds, and nothing that it once touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from meshmoe.model.bench_checkpoint import BenchShape, make_bench_checkpoint
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_trunk

SMALL = BenchShape(hidden=512, layers=6, heads=8, kv_heads=4, experts=32, top_k=4, expert_width=512, vocab=4096)
"""About 300 MB."""

LARGE = BenchShape(hidden=1024, layers=10, experts=32, top_k=4, expert_width=512)
"""About 1.1 GB."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("shape", [SMALL, pytest.param(LARGE, marks=pytest.mark.soak)])
def test_resident_memory_is_what_was_loaded(tiny, tmp_path, shape):
    directory = make_bench_checkpoint(tmp_path / "model", shape)
    probe = [sys.executable, "-m", "tests.model.memory_probe", str(tiny()), str(directory)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(probe, capture_output=True, text=True, cwd=root, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    total_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    assert total_bytes > 250_000_000
    wanted = seen["trunk_bytes"] + seen["expert_bytes"]
    assert 0.3 < seen["expert_bytes"] / total_bytes < 0.36
    # Allowances beyond the weights themselves: interpreter and library pages, tables of tensor names.
    allowance = 12_000_000
    assert seen["with_trunk"] - seen["baseline"] < seen["trunk_bytes"] * 1.15 + allowance
    assert seen["with_experts"] - seen["baseline"] < wanted * 1.05 + allowance
    assert seen["with_experts"] < 1.15 * (seen["baseline"] + wanted)
    assert seen["peak"] < 1.15 * (seen["baseline"] + wanted)
    # Reading every byte of the files, to digest or to serve them, leaves nothing behind.
    assert seen["hashed"] - seen["with_experts"] < 2 * allowance
    assert seen["dropped"] - seen["baseline"] < seen["trunk_bytes"] * 1.15 + 2 * allowance


def test_a_bench_checkpoint_is_a_model_of_its_shape(tmp_path):
    shape = BenchShape(
        hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, experts=4, top_k=2, expert_width=32, vocab=288
    )
    done = []
    directory = make_bench_checkpoint(tmp_path / "model", shape, progress=done.append)
    checkpoint = Checkpoint.open(directory)
    assert len(checkpoint.layers) == 2
    assert checkpoint.layout.ignored == ()
    assert done[-1] == checkpoint.trunk_bytes + sum(checkpoint.expert_bytes(expert) for expert in checkpoint.experts())
    model = load_trunk(checkpoint)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    again = make_bench_checkpoint(tmp_path / "again", shape, tokenizer_from=directory)
    assert Checkpoint.open(again).manifest() == checkpoint.manifest()
