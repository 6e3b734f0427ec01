"""The manifest is the same for the same model, and whatever else arrives in its place is refused."""

from __future__ import annotations

import json
import os
import shutil
import time

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.core.errors import CheckpointError, WireError
from meshmoe.core.ids import ExpertId
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.layout import plan_layout
from meshmoe.model.manifest import (
    FileEntry,
    LayerEntry,
    Manifest,
    TensorEntry,
    TrunkEntry,
    check_layout,
    decode_manifest,
)
from meshmoe.model.tiny_configs import TINY_FAMILIES
from meshmoe.model.unit_names import UnitName, digest_of


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_it_survives_the_wire_and_says_what_the_checkpoint_says(tiny, family):
    checkpoint = Checkpoint.open(tiny(family))
    manifest = checkpoint.manifest()
    received = decode_manifest(manifest.encode(), manifest.model_digest)
    assert received == manifest
    layout = plan_layout(checkpoint.architecture, received.tensors(), "test")
    check_layout(received, layout, "test")
    assert layout.layers == checkpoint.layers
    assert received.trunk.size_bytes == checkpoint.trunk_bytes
    assert received.expert_bytes_total == sum(checkpoint.expert_bytes(e) for e in checkpoint.experts())
    assert [file.name for file in received.files] == sorted(
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    )
    expert = ExpertId(len(checkpoint.layers) - 1, 7)
    assert received.expert_digest(expert) == digest_of(checkpoint.read_expert_unit(expert))
    assert received.trunk.digest == digest_of(checkpoint.read_trunk(0, checkpoint.trunk_bytes))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "dbrx"])
def test_shards_do_not_matter(tiny, family):
    whole, sharded = tiny(family), tiny(family, max_shard_bytes=150_000)
    assert len(list(sharded.glob("*.safetensors"))) > 3
    assert Checkpoint.open(whole).manifest() == Checkpoint.open(sharded).manifest()


def test_weights_do_matter(tiny):
    assert Checkpoint.open(tiny()).manifest().model_digest != Checkpoint.open(tiny(seed=1)).manifest().model_digest


def test_progress_ends_at_the_models_size(tiny):
    checkpoint = Checkpoint.open(tiny())
    done = []
    manifest = checkpoint.manifest(done.append)
    assert done == sorted(done)
    assert done[-1] == manifest.trunk.size_bytes + manifest.expert_bytes_total


def test_an_error_in_progress_ends_the_work(tiny):
    def cancel(done_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Checkpoint.open(tiny()).manifest(cancel)


def test_large_models_have_small_manifests():
    layers = tuple(
        LayerEntry(
            f"model.layers.{number}.mlp.experts",
            3 * 768 * 2048 * 2,
            tuple(
                TensorEntry(f"model.layers.{number}.mlp.experts.{{}}.{name}_proj.weight", "BF16", shape)
                for name, shape in {"down": (2048, 768), "gate": (768, 2048), "up": (768, 2048)}.items()
            ),
            os.urandom(20 * 128),
        )
        for number in range(48)
    )
    manifest = Manifest(1, "qwen3_moe", (FileEntry("config.json", 3, bytes(20)),), TrunkEntry(bytes(20), 0, ()), layers)
    began = time.process_time()
    data = manifest.encode()
    assert decode_manifest(data) == manifest
    assert len(data) < 200_000
    assert time.process_time() - began < 1.0


# --- the cache ---------------------------------------------------------------------------------------------------


def test_the_second_time_is_instant(copied, tmp_path):
    directory, cache = copied(), tmp_path / "cache"
    first = Checkpoint.open(directory).manifest(cache_dir=cache)
    asked = []
    assert Checkpoint.open(directory).manifest(asked.append, cache_dir=cache) == first
    assert asked == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_is_noticed(copied, tmp_path, name):
    directory, cache = copied(), tmp_path / "cache"
    first = Checkpoint.open(directory).manifest(cache_dir=cache)
    content = (directory / name).read_bytes()
    changed = content[:-1] + b"\x01" if name.endswith("safetensors") else content + b"\n"
    (directory / name).write_bytes(changed)
    second = Checkpoint.open(directory).manifest(cache_dir=cache)
    assert second != first
    assert Checkpoint.open(directory).manifest(cache_dir=cache) == second


def test_another_directory_is_not_mistaken(tiny, tmp_path):
    cache = tmp_path / "cache"
    for number in range(2):
        shutil.copytree(tiny(seed=number), tmp_path / str(number))
        for path in (tmp_path / str(number)).iterdir():
            os.utime(path, ns=(10**18, 10**18))
    manifests = [Checkpoint.open(tmp_path / str(number)).manifest(cache_dir=cache) for number in range(2)]
    assert manifests[0] != manifests[1]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93\x90\xa1a\xc4\x00"])
def test_a_damaged_cache_is_no_harm(copied, tmp_path, content):
    directory, cache = copied(), tmp_path / "cache"
    first = Checkpoint.open(directory).manifest(cache_dir=cache)
    (entry,) = cache.iterdir()
    entry.write_bytes(content or entry.read_bytes()[:-30])
    asked = []
    assert Checkpoint.open(directory).manifest(asked.append, cache_dir=cache) == first
    assert asked


def test_a_cache_that_cannot_be_written_is_no_harm(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    Checkpoint.open(tiny()).manifest(cache_dir=tmp_path / "file" / "cache")


# --- what strangers send -----------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(WireError):
        decode_manifest(data)


def small_manifest() -> Manifest:
    layer = LayerEntry("model.layers.0.mlp.experts", 8, (TensorEntry("experts.{}.w", "F32", (1, 2)),), bytes(40))
    trunk = TrunkEntry(bytes(20), 12, (TensorEntry("a", "F32", (2,)), TensorEntry("b", "F16", (1, 2))))
    return Manifest(1, "qwen3_moe", (FileEntry("config.json", 2, bytes(20)),), trunk, (layer,))


SMALL = small_manifest().encode()


def test_the_small_manifest_is_accepted():
    assert decode_manifest(SMALL) == small_manifest()


@settings(max_examples=400)
@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255), st.integers(0, 2))
def test_one_changed_byte_is_accepted_only_if_the_result_is_canonical(at, value, kind):
    data = bytearray(SMALL)
    if kind == 0:
        data[at] = value
    elif kind == 1:
        data.insert(at, value)
    else:
        del data[at]
    try:
        manifest = decode_manifest(bytes(data))
    except WireError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
    else:
        assert manifest.encode() == bytes(data)
        assert manifest.trunk.size_bytes == sum(t.spec.size_bytes for t in manifest.trunk.tensors)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=40,
).filter(lambda value: not isinstance(value, int) or -(2**63) <= value < 2**64)


@given(st.lists(json_like, min_size=5, max_size=5))
def test_structures_of_the_wrong_kind_are_refused(fields):
    try:
        data = msgspec.msgpack.encode([1, *fields[1:]])
    except OverflowError:
        return
    with pytest.raises(WireError):
        decode_manifest(data)


def changed(**fields) -> Manifest:
    return msgspec.structs.replace(small_manifest(), **fields)


def with_layer(**fields) -> Manifest:
    return changed(layers=(msgspec.structs.replace(small_manifest().layers[0], **fields),))


def with_trunk(*tensors: TensorEntry, size_bytes: int = 0) -> Manifest:
    return changed(trunk=TrunkEntry(bytes(20), size_bytes, tensors))


HOSTILE = {
    "a path": changed(files=(FileEntry("../../etc/passwd", 2, bytes(20)),)),
    "an unlisted file": changed(files=(FileEntry("config.json", 1, bytes(20)), FileEntry("evil.py", 1, bytes(20)))),
    "no config": changed(files=(FileEntry("tokenizer.json", 1, bytes(20)),)),
    "unsorted files": changed(
        files=(FileEntry("tokenizer.json", 1, bytes(20)), FileEntry("config.json", 1, bytes(20)))
    ),
    "a file twice": changed(files=(FileEntry("config.json", 1, bytes(20)),) * 2),
    "a huge file": changed(files=(FileEntry("config.json", 1 << 40, bytes(20)),)),
    "a negative size": changed(files=(FileEntry("config.json", -1, bytes(20)),)),
    "a short digest": changed(files=(FileEntry("config.json", 1, bytes(19)),)),
    "a family with a path": changed(family="../x"),
    "a family with a line break": changed(family="qwen3\n"),
    "another format": changed(format=2),
    "no layers": changed(layers=()),
    "too many layers": changed(layers=small_manifest().layers * 2000),
    "a layer twice": changed(layers=small_manifest().layers * 2),
    "too many experts": with_layer(digests=bytes(20 * 5000)),
    "half a digest": with_layer(digests=bytes(30)),
    "no expert": with_layer(digests=b""),
    "a wrong expert size": with_layer(expert_bytes=9),
    "an empty expert": with_layer(expert_bytes=0, pieces=(TensorEntry("e.{}", "F32", (0, 2)),)),
    "no pieces": with_layer(pieces=()),
    "two marks": with_layer(pieces=(TensorEntry("e.{}.{}", "F32", (1, 2)),)),
    "an expert scalar": with_layer(expert_bytes=4, pieces=(TensorEntry("e.{}", "F32", ()),)),
    "a mark in the trunk": with_trunk(TensorEntry("a.{}", "F32", (1,)), size_bytes=4),
    "a key with a blank": with_trunk(TensorEntry("a b", "F32", (1,)), size_bytes=4),
    "a key with a line break": with_trunk(TensorEntry("a\n", "F32", (1,)), size_bytes=4),
    "an unknown dtype": with_trunk(TensorEntry("a", "F4", (1,)), size_bytes=4),
    "unsorted tensors": with_trunk(TensorEntry("b", "F32", (1,)), TensorEntry("a", "F32", (1,)), size_bytes=8),
    "a wrong sum": with_trunk(TensorEntry("a", "F32", (1,)), size_bytes=5),
    "huge axes": with_trunk(TensorEntry("a", "F32", (1 << 39,) * 8), size_bytes=0),
    "a negative axis": with_trunk(TensorEntry("a", "F32", (-1,)), size_bytes=0),
    "too many axes": with_trunk(TensorEntry("a", "F32", (1,) * 9), size_bytes=4),
    "a trunk tensor that is an expert's": changed(
        trunk=TrunkEntry(bytes(20), 4, (TensorEntry("e", "F32", (1,)),)),
        layers=(LayerEntry("m", 8, (TensorEntry("e", "F32", (1, 2)),), bytes(40)),),
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_manifests_are_refused(what):
    with pytest.raises(WireError) as caught:
        decode_manifest(HOSTILE[what].encode())
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("the manifest ")


def test_another_model_than_expected():
    with pytest.raises(WireError, match="does not have the digest"):
        decode_manifest(SMALL, "0" * 40)


def test_too_many_bytes():
    with pytest.raises(WireError, match="more than the"):
        decode_manifest(bytes(65 << 20))


def test_a_manifest_that_the_config_contradicts(tiny):
    checkpoint = Checkpoint.open(tiny())
    manifest = checkpoint.manifest()
    swapped = msgspec.structs.replace(manifest, layers=manifest.layers[::-1])
    with pytest.raises(CheckpointError, match="install the transformers version"):
        check_layout(swapped, checkpoint.layout, "test")


# --- names of units ----------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["manifest", "file", "trunk", "expert", "", "EXPERT", None, 3]),
    st.sampled_from(["", "config.json", "tokenizer.json", "../x", "/etc/passwd", "a/config.json", "config.json\0", "."])
    | st.text(max_size=70)
    | st.none()
    | st.lists(st.integers(), max_size=1),
    st.integers() | st.booleans() | st.none() | st.floats() | st.text(max_size=3),
    st.integers(-3, 5000) | st.booleans() | st.just("1"),
)
def test_no_unit_leaves_its_directory(kind, name, layer, index):
    try:
        unit = UnitName(kind, name, layer, index)
    except WireError as error:
        assert "\n" not in str(error)
        return
    path = unit.path
    assert path.count("/") == (unit.kind == "expert")
    assert ".." not in path
    assert not path.startswith(("/", "."))
    assert str(unit)


def test_names_of_units():
    assert UnitName.of_expert(ExpertId(3, 127)).path == "experts/003-127.bin"
    assert UnitName.of_expert(ExpertId(3, 1270)).path == "experts/003-1270.bin"
    assert UnitName("file", "config.json").path == "config.json"
    assert len({UnitName("trunk"), UnitName("trunk"), UnitName("manifest")}) == 2


def test_a_config_that_is_written_differently_is_another_model(copied):
    directory = copied(dtype=torch.bfloat16)
    before = Checkpoint.open(directory).manifest().model_digest
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert Checkpoint.open(directory).manifest().model_digest != before
