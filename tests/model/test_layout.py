"""Every byte of a checkpoint is trunk, expert, or known to be unused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from meshmoe.core.errors import CheckpointError
from meshmoe.core.ids import ExpertId
from meshmoe.model.architecture import Architecture
from meshmoe.model.assembly import piece_places
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.layout import plan_layout
from meshmoe.model.tensors import TensorSpec
from meshmoe.model.tiny_configs import TINY_FAMILIES, tiny_config

IGNORED_BYTES = {"longcat_flash": 2 * 2 * 48 * 64 * 4}
"""longcat's zero experts compute nothing, but its files have gate and up rows for them."""


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_trunk_and_experts_are_everything(tiny, family):
    directory = tiny(family)
    checkpoint = Checkpoint.open(directory)
    stored = load_file(directory / "model.safetensors")
    assert checkpoint.family == family
    assert all(layer.n_experts == 8 for layer in checkpoint.layers)
    assert {layer.top_k for layer in checkpoint.layers} == {1 if family == "llama4_text" else 2}
    expert_bytes = sum(checkpoint.expert_bytes(expert) for expert in checkpoint.experts())
    total_bytes = sum(tensor.nbytes for tensor in stored.values())
    assert expert_bytes > 0.2 * total_bytes
    assert checkpoint.trunk_bytes + expert_bytes + IGNORED_BYTES.get(family, 0) == total_bytes
    assert len(checkpoint.layout.ignored) == (4 if family in IGNORED_BYTES else 0)
    assert checkpoint.context_length == 512
    assert [layer.ordinal for layer in checkpoint.layers] == list(range(len(checkpoint.layers)))


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "granitemoe", "dbrx"])
def test_units_are_the_raw_tensors(tiny, family):
    directory = tiny(family)
    checkpoint = Checkpoint.open(directory)
    stored = dict(load_file(directory / "model.safetensors").items())
    for expert in (ExpertId(0, 0), ExpertId(1, 5)):
        parts = []
        for piece in checkpoint.layers[expert.layer].pieces:
            tensor = stored[piece.key_of(expert.index)]
            parts.append(tensor.chunk(8)[expert.index] if piece.fused else tensor)
        unit = checkpoint.read_expert_unit(expert)
        assert bytes(unit) == b"".join(part.contiguous().numpy().tobytes() for part in parts)
        keys = [piece.key for piece in checkpoint.layers[expert.layer].pieces]
        assert keys == sorted(keys)


def test_trunk_bytes_are_the_trunks_tensors_in_order(tiny):
    directory = tiny("deepseek_v3", max_shard_bytes=100_000)
    checkpoint = Checkpoint.open(directory)
    stored = {}
    for path in directory.glob("*.safetensors"):
        stored |= load_file(path)
    expected = b"".join(stored[key].numpy().tobytes() for key in checkpoint.layout.trunk)
    assert bytes(checkpoint.read_trunk(0, checkpoint.trunk_bytes + 5)) == expected
    for step in (7, 1000, 65536):
        chunks = [bytes(checkpoint.read_trunk(at, step)) for at in range(0, len(expected), step)]
        assert b"".join(chunks) == expected
    assert bytes(checkpoint.read_trunk(len(expected), 10)) == b""
    assert bytes(checkpoint.read_trunk(len(expected) + 3, 10)) == b""


def test_pieces_that_converting_leaves_whole(tiny):
    # gate above up, each as it stands in the file, so both can be read to their places
    checkpoint = Checkpoint.open(tiny("qwen3_moe"))
    names = [piece.key.split(".")[-2] for piece in checkpoint.layers[0].pieces]
    places = piece_places(checkpoint.architecture, checkpoint.layers[0])
    assert dict(zip(names, places, strict=True)) == {"gate_proj": 0, "up_proj": 48 * 64 * 4, "down_proj": 0}


def test_a_converter_that_rearranges_is_noticed(tiny, monkeypatch):
    checkpoint = Checkpoint.open(tiny("qwen3_moe"))
    stock = checkpoint.architecture.convert
    monkeypatch.setattr(
        checkpoint.architecture, "convert", lambda name, parts: stock(name, parts).roll(1, dims=-1).contiguous()
    )
    assert piece_places(checkpoint.architecture, checkpoint.layers[0]) is None


def test_large_models_are_planned_quickly():
    config = tiny_config("qwen3_moe")
    config.num_hidden_layers, config.num_experts = 48, 128
    architecture = Architecture(config, "test")
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight": TensorSpec("BF16", shape)
        for layer in range(48)
        for expert in range(128)
        for name, shape in {"gate_proj": (48, 64), "up_proj": (48, 64), "down_proj": (64, 48)}.items()
    }
    layout = plan_layout(architecture, tensors, "test")
    assert len(layout.experts()) == 48 * 128
    assert layout.trunk == ()


def rewrite(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


EXPERT_KEY = "model.layers.1.mlp.experts.{}.up_proj.weight"


def test_a_missing_expert_tensor_is_named(copied):
    directory = copied()
    rewrite(directory, lambda tensors: tensors.pop(EXPERT_KEY.format(5)))
    with pytest.raises(CheckpointError, match=r"tensor model.layers.1.mlp.experts.5.up_proj.weight is missing"):
        Checkpoint.open(directory)


def test_a_missing_last_expert_is_named(copied):
    directory = copied()
    rewrite(directory, lambda tensors: tensors.pop(EXPERT_KEY.format(7)))
    with pytest.raises(CheckpointError, match=r"experts.7.up_proj.weight is missing"):
        Checkpoint.open(directory)


def test_a_layer_without_experts_is_named(copied):
    directory = copied()

    def drop(tensors):
        for key in [key for key in tensors if "layers.2.mlp.experts" in key]:
            del tensors[key]

    rewrite(directory, drop)
    with pytest.raises(
        CheckpointError, match=r"layers.2.mlp.experts.gate_up_proj needs 6144 numbers an expert, but the files hold 0"
    ):
        Checkpoint.open(directory)


def test_a_projection_that_is_missing_everywhere(copied):
    directory = copied()

    def drop(tensors):
        for index in range(8):
            del tensors[EXPERT_KEY.format(index)]

    rewrite(directory, drop)
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.experts.gate_up_proj needs 6144 .* hold 3072"):
        Checkpoint.open(directory)


def test_an_odd_expert_is_named(copied):
    directory = copied()
    rewrite(directory, lambda tensors: tensors.update({EXPERT_KEY.format(3): torch.zeros(47, 64)}))
    with pytest.raises(CheckpointError, match=r"experts.3.up_proj.weight differs in dtype or shape"):
        Checkpoint.open(directory)


def test_a_fused_tensor_that_cannot_be_cut(copied):
    directory = copied("gpt_oss")
    rewrite(directory, lambda tensors: tensors.update({"model.layers.0.mlp.experts.down_proj": torch.zeros(7, 48, 64)}))
    with pytest.raises(CheckpointError, match=r"shape \[7, 48, 64\] cannot be cut into 8 experts"):
        Checkpoint.open(directory)


def test_extra_tensors_are_ignored(copied):
    # multi-token prediction layers come with many checkpoints, and stock transformers passes over them too
    directory = copied("deepseek_v3")
    before = Checkpoint.open(directory)
    rewrite(directory, lambda tensors: tensors.update({"model.layers.61.eh_proj.weight": torch.zeros(4)}))
    after = Checkpoint.open(directory)
    assert after.layout.ignored == ("model.layers.61.eh_proj.weight",)
    assert after.layout.trunk == before.layout.trunk
    assert after.manifest() == before.manifest()


def test_dense_models_are_turned_away(tmp_path):
    AutoConfig.for_model("llama", hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a dense model \(llama\): it has no routed experts"):
        Checkpoint.open(tmp_path)


def test_families_without_the_seam_are_turned_away(tmp_path):
    config = AutoConfig.for_model(
        "jetmoe", hidden_size=64, num_hidden_layers=1, num_key_value_heads=4, kv_channels=16, num_local_experts=4
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"keeps its experts in JetMoeParallelExperts modules \(jetmoe\)"):
        Checkpoint.open(tmp_path)


def test_one_expert_in_a_layer(tmp_path):
    from meshmoe.model.bench_checkpoint import BenchShape, make_bench_checkpoint

    shape = BenchShape(64, 2, 4, 2, 16, experts=1, top_k=1, expert_width=32, vocab=288, dtype=torch.float32)
    checkpoint = Checkpoint.open(make_bench_checkpoint(tmp_path, shape))
    assert list(checkpoint.experts()) == [ExpertId(0, 0), ExpertId(1, 0)]
    assert checkpoint.layers[0].pieces[0].key == "model.layers.0.mlp.experts.{}.down_proj.weight"
