"""What is wrong with a model directory is said in one line: what, where, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshmoe.core.errors import CheckpointError
from meshmoe.model.checkpoint import Checkpoint


def message_of(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    text = str(caught.value)
    assert "\n" not in text
    assert str(directory) in text
    return text


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_no_such_directory(tmp_path):
    assert "is not a directory" in message_of(tmp_path / "nowhere")


def test_a_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "is not a directory" in message_of(tmp_path / "model.gguf")


def test_no_config(tmp_path):
    assert "has no config.json" in message_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_config_that_is_not_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json is not valid JSON" in message_of(tmp_path)


@pytest.mark.parametrize("content", ["[1, 2]", "3", '{"model_type": 3}', "{}", "null"])
def test_config_of_something_else(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert "names no model_type" in message_of(tmp_path)


def test_unknown_architecture(copied):
    directory = copied()
    edit_config(directory, model_type="qwen9_moe", architectures=["Qwen9"])
    assert "does not know the architecture 'qwen9_moe'; update transformers" in message_of(directory)


def test_not_a_language_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert "no causal language model for 'vit'" in message_of(tmp_path)


def test_code_in_the_checkpoint_is_never_run(copied):
    directory = copied()
    edit_config(directory, model_type="mine", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"})
    (directory / "evil.py").write_text("raise SystemExit('ran')")
    assert "architecture 'mine' (it brings code of its own, which is never run)" in message_of(directory)


def test_remote_kernels_are_refused(copied):
    directory = copied()
    edit_config(directory, attn_implementation="someone/kernel")
    assert "attn_implementation asks for 'someone/kernel'" in message_of(directory)


def test_quantised_checkpoints_are_refused(copied):
    directory = copied("gpt_oss")
    edit_config(directory, quantization_config={"quant_method": "mxfp4"})
    assert "quantised (mxfp4)" in message_of(directory)


@pytest.mark.parametrize("changes", [{"hidden_size": "wide"}, {"num_attention_heads": 0}])
def test_impossible_config(copied, changes):
    directory = copied()
    edit_config(directory, **changes)
    assert "config.json" in message_of(directory)


def test_config_of_absurd_size(copied):
    directory = copied()
    edit_config(directory, num_hidden_layers=10**9)
    assert "num_hidden_layers is 1000000000" in message_of(directory)


def test_no_weights(copied):
    directory = copied()
    (directory / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in message_of(directory)
    (directory / "pytorch_model.bin").write_bytes(b"")
    assert "it has pytorch_model.bin: save it again as safetensors" in message_of(directory)


def test_truncated_file(copied):
    directory = copied()
    path = directory / "model.safetensors"
    whole_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(whole_bytes - 1000)
    text = message_of(directory)
    assert f"model.safetensors is truncated: {whole_bytes - 1000} of {whole_bytes} bytes" in text


@pytest.mark.parametrize("content", [b"", b"short", b"\x10" + b"\0" * 7 + b"not json at all!", b"<html>404</html>" * 9])
def test_not_safetensors(copied, content):
    directory = copied()
    (directory / "model.safetensors").write_bytes(content)
    assert "is not a safetensors file" in message_of(directory)


def test_git_lfs_pointer(copied):
    directory = copied()
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    assert "git lfs pull" in message_of(directory)


def test_appended_bytes(copied):
    directory = copied()
    with (directory / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "is damaged" in message_of(directory)


SHARD_BYTES = 200_000


def test_missing_shard(copied):
    directory = copied(max_shard_bytes=SHARD_BYTES)
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 3
    shards[1].unlink()
    assert f"lacks {shards[1].name}, named in model.safetensors.index.json" in message_of(directory)
    shards[2].unlink()
    assert f"lacks {shards[1].name} and 1 more" in message_of(directory)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"weight_map": 3}', b'{"weight_map": {}}', b'{"weight_map": {"a": 3}}', b"\xff", b"null"],
)
def test_bad_index(copied, content):
    directory = copied(max_shard_bytes=SHARD_BYTES)
    (directory / "model.safetensors.index.json").write_bytes(content)
    assert "is not a valid index" in message_of(directory)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_index_that_leaves_the_directory(copied, name):
    directory = copied(max_shard_bytes=SHARD_BYTES)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    path.write_text(json.dumps(index))
    assert "plain file names" in message_of(directory)


def test_index_that_lies(copied):
    directory = copied(max_shard_bytes=SHARD_BYTES)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    key = next(key for key, name in index["weight_map"].items() if name == shards[0])
    index["weight_map"][key] = shards[1]
    path.write_text(json.dumps(index))
    assert f"names tensor {key}, which {shards[1]} lacks" in message_of(directory)


def test_a_tensor_in_two_shards(copied):
    directory = copied(max_shard_bytes=SHARD_BYTES)
    shards = sorted(directory.glob("model-*.safetensors"))
    shards[1].write_bytes(shards[0].read_bytes())
    assert "is in both" in message_of(directory)


def test_missing_trunk_tensor(copied):
    from safetensors.torch import load_file, save_file

    from meshmoe.model.loading import load_trunk

    directory = copied()
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensors for model.norm.weight are missing"):
        load_trunk(Checkpoint.open(directory))


def test_misshapen_trunk_tensor(copied):
    from safetensors.torch import load_file, save_file

    from meshmoe.model.loading import load_trunk

    directory = copied()
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"norm.weight has the shape \[63\], but config.json says \[64\]"):
        load_trunk(Checkpoint.open(directory))


def test_a_file_that_shrinks_while_it_is_in_use(copied):
    directory = copied()
    checkpoint = Checkpoint.open(directory)
    with (directory / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match="has shrunk since it was opened"):
        for expert in checkpoint.experts():
            checkpoint.read_expert_unit(expert)


def test_an_unreadable_file(copied):
    directory = copied()
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to(directory / "gone")
    assert "neither" in message_of(directory)
