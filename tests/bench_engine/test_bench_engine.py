"""The engine's benches, small: their figures are measured, consistent, and come out as JSON and as tables."""

import json

import pytest
import torch
from click.testing import CliRunner

from meshmoe.bench_engine.calls import call_table, measure_calls
from meshmoe.bench_engine.decode import token_bytes
from meshmoe.bench_engine.kernels import measure_kernels
from meshmoe.bench_engine.turns import in_turns
from meshmoe.cli.bench import bench
from meshmoe.engine.model import load_moe_model
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.tiny import make_tiny_checkpoint


def test_candidates_are_measured_in_turns_and_the_first_turn_does_not_count():
    log = []

    def candidate(name, figures):
        left = iter(figures)

        def measure():
            log.append(name)
            return next(left)

        return measure

    found = in_turns({"a": candidate("a", [99, 1, 5, 3]), "b": candidate("b", [99, 2, 2, 8])}, 3)
    assert found == {"a": 3, "b": 2}
    assert log == ["a", "b"] * 4


def test_kernels():
    figures = measure_kernels(1, 1 << 20, ((64, 48),), lambda _: None)
    assert [(f.dtype, f.rows) for f in figures] == [
        *(("bfloat16", rows) for rows in (1, 2, 4, 8, 32)),
        ("float16", 1),
        ("float32", 1),
    ]
    for figure in figures:
        assert figure.compiled > 0
        assert figure.read > 0
        assert figure.torch > 0


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_decode_as_json(family, tmp_path):
    make_tiny_checkpoint(family, tmp_path / "tiny", dtype=torch.float32)
    asked = ["decode", "--model", str(tmp_path / "tiny"), "--tokens", "16", "--turns", "1", "--json"]
    done = CliRunner().invoke(bench, asked)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    (figure,) = report["figures"]
    assert len(report["load"]) == 3
    if family == "qwen3_moe":
        assert figure["agree"] == figure["compared"] == 4
        assert figure["lean"] > figure["generic"] > 0
    else:
        assert figure["lean"] is None
        assert figure["compared"] == 0


def test_decode_as_a_table(tmp_path):
    make_tiny_checkpoint("qwen3_moe", tmp_path / "tiny", dtype=torch.float32)
    done = CliRunner().invoke(bench, ["decode", "--model", str(tmp_path / "tiny"), "--tokens", "8", "--turns", "1"])
    assert done.exit_code == 0, done.output
    assert "| tiny | float32 | 16 | " in done.stdout
    assert "load of this machine" in done.stdout


def test_the_bytes_of_a_token(tmp_path):
    checkpoint = Checkpoint.open(make_tiny_checkpoint("qwen3_moe", tmp_path, dtype=torch.bfloat16))
    model = load_moe_model(checkpoint)
    hidden, vocabulary, layers = 64, 288, 3
    attention = hidden * (4 * 16) * 2 + hidden * (2 * 16) * 2 + 2 * 16
    one_layer = attention + 2 * hidden + 8 * hidden + 2 * 3 * hidden * 48
    # The embedding table is the head as well if the two are tied; it is read once either way.
    assert token_bytes(model) == 2 * (layers * one_layer + hidden + vocabulary * hidden)


@pytest.mark.soak
def test_an_expert_call_from_node_to_node_costs_more_than_its_parts():
    figure = measure_calls(100, 1, lambda _: None)
    assert figure.node > figure.steps["compute the expert"] > 0
    assert figure.node > figure.raw > 0
    assert all(took_us > 0 for took_us in figure.steps.values())
    assert "| two blocking DEALER sockets (raw ZeroMQ) |" in call_table(figure)
