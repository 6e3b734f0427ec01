"""Random models for benches: what is written does not depend on how, and what has no room is not begun."""

import dataclasses
import shutil

import pytest
from click.testing import CliRunner

from meshmoe.cli.bench import bench
from meshmoe.core.errors import CapacityError
from meshmoe.model import bench_checkpoint
from meshmoe.model.bench_checkpoint import BENCH_SHAPES, BenchShape, make_bench_checkpoint
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_trunk

TINY = BenchShape(
    hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, experts=4, top_k=2, expert_width=32, vocab=288, tied=False
)


def _content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_same_files_however_many_shards_are_drawn_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_checkpoint, "_shards_at_once", lambda _: 1)
    one = _content(make_bench_checkpoint(tmp_path / "one", TINY))
    monkeypatch.setattr(bench_checkpoint, "_shards_at_once", lambda _: 4)
    assert _content(make_bench_checkpoint(tmp_path / "four", TINY)) == one
    weights = [content for name, content in one.items() if name.startswith("model-")]
    assert len(weights) == len(set(weights)) == 4  # every layer has weights of its own
    assert _content(make_bench_checkpoint(tmp_path / "other", TINY, seed=1)) != one


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_of_its_own_or_the_embedding(tmp_path, tied):
    checkpoint = Checkpoint.open(make_bench_checkpoint(tmp_path, dataclasses.replace(TINY, tied=tied)))
    model = load_trunk(checkpoint)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.lm_head.weight.std().item() == pytest.approx(0.6 / 8, rel=0.1)


@pytest.mark.parametrize("shape", [TINY, dataclasses.replace(TINY, tied=True)])
def test_a_shape_knows_its_size(tmp_path, shape):
    checkpoint = Checkpoint.open(make_bench_checkpoint(tmp_path, shape))
    norms = shape.layers * 2 * (2 * shape.hidden + 2 * shape.head_dim) + 2 * shape.hidden
    written = checkpoint.trunk_bytes + sum(checkpoint.expert_bytes(expert) for expert in checkpoint.experts())
    assert shape.model_bytes + norms == written


def test_sizes_are_those_that_the_pages_say():
    sizes = {name: round(shape.model_bytes / 2**30, 1) for name, shape in BENCH_SHAPES.items()}
    assert sizes == {"bench-1.7b": 3.1, "qwen3-30b": 56.9}


def test_a_disk_without_room_is_not_begun_on(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CapacityError, match=r"has 0.98 KiB free.*make .* free, or give another directory"):
        make_bench_checkpoint(tmp_path / "model", TINY)
    assert not list((tmp_path / "model").iterdir())


def test_the_command_writes_the_shape_that_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(bench_checkpoint.BENCH_SHAPES, "qwen3-30b", TINY)
    done = CliRunner().invoke(bench, ["make-model", str(tmp_path / "model"), "--shape", "qwen3-30b"])
    assert done.exit_code == 0, done.output
    assert Checkpoint.open(tmp_path / "model").config.num_hidden_layers == TINY.layers
    assert set(bench_checkpoint.BENCH_SHAPES) == set(_choices())


def _choices():
    (option,) = [option for option in bench.commands["make-model"].params if option.name == "name"]
    return option.type.choices
