"""A partial store: filled unit by unit, interrupted, damaged, and at last as good as the checkpoint."""

from __future__ import annotations

import errno
import os
import threading

import msgspec
import pytest
import torch

from meshmoe.core.errors import CapacityError, CheckpointError, WireError
from meshmoe.core.ids import ExpertId
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert, load_trunk
from meshmoe.model.manifest import Manifest
from meshmoe.model.store import PartialStore
from meshmoe.model.unit_names import UnitName
from tests.families import LOGITS_TOLERANCE, NAMED_FAMILIES, install_local_experts, sample_ids, stock_model
from tests.model.stores import fill, receive

TRUNK = UnitName("trunk")
EXPERT = UnitName("expert", "", 1, 3)


@pytest.fixture
def checkpoint(tiny):
    checkpoint = Checkpoint.open(tiny())
    checkpoint.manifest()
    return checkpoint


@pytest.fixture
def store(checkpoint, tmp_path):
    return PartialStore(tmp_path / "store", checkpoint.manifest())


@pytest.mark.parametrize("family", [*NAMED_FAMILIES, "llama4_text", "dbrx", "longcat_flash", "jamba"])
def test_a_filled_store_is_the_model(tiny, tmp_path, family):
    checkpoint = Checkpoint.open(tiny(family))
    manifest = checkpoint.manifest()
    directory = tmp_path / manifest.model_digest
    fill(checkpoint, PartialStore(directory, manifest))
    store = PartialStore.open(directory, manifest.model_digest)  # as after a restart
    assert store.missing() == []
    assert store.layers == checkpoint.layers
    assert (store.family, store.dtype, store.context_length) == (family, torch.float32, 512)
    assert store.trunk_bytes == checkpoint.trunk_bytes
    assert store.stored_experts() == frozenset(checkpoint.experts())
    model = load_trunk(store)
    install_local_experts(model, store)
    with torch.no_grad():
        actual = model(input_ids=sample_ids(), use_cache=False).logits
        expected = stock_model(tiny(family))(input_ids=sample_ids(), use_cache=False).logits
    if family in LOGITS_TOLERANCE:
        torch.testing.assert_close(actual, expected, rtol=0, atol=LOGITS_TOLERANCE[family])
    else:
        assert torch.equal(actual, expected)


def test_units_are_read_alike_from_both(checkpoint, store):
    fill(checkpoint, store)
    for unit in [UnitName("manifest"), *store.manifest.units()]:
        assert store.unit_bytes(unit) == checkpoint.unit_bytes(unit)
        assert store.has_unit(unit)
        assert checkpoint.has_unit(unit)
        size_bytes = store.unit_bytes(unit)
        for offset, length in (
            (0, size_bytes + 9),
            (5, 100),
            (size_bytes - 3, 50),
            (size_bytes, 1),
            (size_bytes + 7, 1),
        ):
            assert bytes(store.read_unit(unit, offset, length)) == bytes(checkpoint.read_unit(unit, offset, length))
    for expert in checkpoint.experts():
        assert bytes(store.read_expert_unit(expert)) == bytes(checkpoint.read_expert_unit(expert))
        ours, theirs = load_expert(store, expert), load_expert(checkpoint, expert)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for key in checkpoint.layout.trunk:
        assert torch.equal(store.read_trunk_tensor(key), checkpoint.read_trunk_tensor(key))
        assert store.trunk_spec(key) == checkpoint.trunk_spec(key)


def test_an_empty_store_says_what_it_lacks(checkpoint, store):
    assert [str(unit) for unit in store.missing()] == [
        *(f"file {file.name}" for file in store.manifest.files),
        "the trunk",
    ]
    assert store.stored_experts() == frozenset()
    assert store.stored_bytes() == 0
    assert not store.has_expert(ExpertId(0, 0))
    with pytest.raises(CheckpointError, match=r"file config.json is not in"):
        _ = store.layers
    receive(checkpoint, store, UnitName("file", "config.json"))
    assert store.layers == checkpoint.layers
    with pytest.raises(CheckpointError, match=r"the trunk is not in"):
        load_trunk(store)
    with pytest.raises(CheckpointError, match=r"expert 1/3 is not in"):
        load_expert(store, ExpertId(1, 3))
    receive(checkpoint, store, EXPERT)
    assert store.stored_experts() == {ExpertId(1, 3)}
    assert store.stored_bytes() == store.expert_bytes(ExpertId(1, 3)) + store.unit_bytes(
        UnitName("file", "config.json")
    )


# --- interruptions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [TRUNK, EXPERT, UnitName("file", "tokenizer.json")])
def test_going_on_after_a_restart(checkpoint, store, unit):
    content = bytes(checkpoint.read_unit(unit, 0, 1 << 30))
    assert store.begin(unit) == 0
    store.append(unit, 0, content[:1000])
    store.append(unit, 1000, content[1000:1500])
    store.close()
    again = PartialStore.open(store.directory)
    assert not again.has(unit)
    assert again.begin(unit) == 1500
    assert again.begin(unit) == 1500
    again.append(unit, 1500, content[1500:])
    assert not again.has(unit)
    again.finish(unit)
    assert again.has(unit)
    assert (again.directory / unit.path).read_bytes() == content
    assert not list(again.directory.rglob("*.part"))


def test_killed_between_the_last_byte_and_the_digest(checkpoint, store):
    content = checkpoint.read_unit(EXPERT, 0, 1 << 30)
    store.begin(EXPERT)
    store.append(EXPERT, 0, content)
    again = PartialStore.open(store.directory)
    assert again.begin(EXPERT) == len(content)
    again.finish(EXPERT)
    assert again.has(EXPERT)


def test_a_wrong_byte_is_found_and_the_unit_starts_anew(checkpoint, store):
    content = bytearray(checkpoint.read_unit(EXPERT, 0, 1 << 30))
    content[77] ^= 1
    store.begin(EXPERT)
    store.append(EXPERT, 0, content)
    with pytest.raises(WireError, match=r"expert 1/3: what was received does not have the right digest"):
        store.finish(EXPERT)
    assert not store.has(EXPERT)
    assert not list(store.directory.rglob("*.part"))
    assert store.begin(EXPERT) == 0
    receive(checkpoint, store, EXPERT)
    assert store.has(EXPERT)


def test_a_partial_file_that_was_damaged_starts_anew(checkpoint, store):
    content = bytes(checkpoint.read_unit(EXPERT, 0, 1 << 30))
    store.begin(EXPERT)
    store.append(EXPERT, 0, content[:500])
    store.close()
    part = store.directory / (EXPERT.path + ".part")
    part.write_bytes(b"x" + content[1:500])
    again = PartialStore.open(store.directory)
    with pytest.raises(WireError, match=r"right digest"):
        receive(checkpoint, again, EXPERT)
    receive(checkpoint, again, EXPERT)
    assert again.has(EXPERT)


def test_a_partial_file_that_is_too_long_starts_anew(checkpoint, store):
    part = store.directory / (EXPERT.path + ".part")
    part.parent.mkdir()
    part.write_bytes(bytes(checkpoint.unit_bytes(EXPERT) + 1))
    assert store.begin(EXPERT) == 0
    receive(checkpoint, store, EXPERT)


def test_bytes_that_do_not_belong_are_refused(checkpoint, store):
    size_bytes = checkpoint.unit_bytes(EXPERT)
    with pytest.raises(WireError, match=r"is not being received"):
        store.append(EXPERT, 0, b"x")
    store.begin(EXPERT)
    store.append(EXPERT, 0, b"abc")
    for offset in (0, 2, 4):
        with pytest.raises(WireError, match=r"expected 3"):
            store.append(EXPERT, offset, b"x")
    with pytest.raises(WireError, match=r"more than its"):
        store.append(EXPERT, 3, bytes(size_bytes - 2))
    with pytest.raises(WireError, match=f"got 3 of its {size_bytes} bytes"):
        store.finish(EXPERT)
    store.append(EXPERT, 3, b"d")  # and it goes on
    with pytest.raises(WireError, match=r"has no unit expert 9/0"):
        store.begin(UnitName("expert", "", 9, 0))
    with pytest.raises(WireError, match=r"has no unit expert 0/8"):
        store.begin(UnitName("expert", "", 0, 8))
    with pytest.raises(WireError, match=r"has no unit file vocab.json"):
        store.begin(UnitName("file", "vocab.json"))
    with pytest.raises(WireError, match=r"has no unit the manifest"):
        store.begin(UnitName("manifest"))


def test_what_is_here_is_not_received_again(checkpoint, store):
    receive(checkpoint, store, EXPERT)
    with pytest.raises(CheckpointError, match=r"expert 1/3 is already in"):
        store.begin(EXPERT)


def test_deleting(checkpoint, store):
    receive(checkpoint, store, EXPERT)
    store.delete(EXPERT)
    assert not store.has(EXPERT)
    assert not (store.directory / EXPERT.path).exists()
    store.begin(EXPERT)
    store.append(EXPERT, 0, b"abc")
    store.delete(EXPERT)
    assert store.begin(EXPERT) == 0
    store.delete(EXPERT)
    store.delete(TRUNK)


# --- damage ------------------------------------------------------------------------------------------------------


def flip(path, at=100):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def test_a_damaged_expert_is_never_handed_out(checkpoint, store):
    fill(checkpoint, store, [EXPERT])
    flip(store.directory / EXPERT.path)
    again = PartialStore.open(store.directory)
    assert again.has(EXPERT)
    with pytest.raises(CheckpointError, match=r"expert 1/3 in .* was damaged and is deleted; fetch it again"):
        load_expert(again, EXPERT.expert_id)
    assert not again.has(EXPERT)
    receive(checkpoint, again, EXPERT)
    load_expert(again, EXPERT.expert_id)


def test_a_damaged_trunk_is_never_loaded(checkpoint, store):
    fill(checkpoint, store, [])
    flip(store.directory / TRUNK.path)
    again = PartialStore.open(store.directory)
    with pytest.raises(CheckpointError, match=r"the trunk in .* was damaged and is deleted"):
        load_trunk(again)
    assert again.missing() == [TRUNK]


def test_truncated_and_damaged_files_are_fetched_again(checkpoint, store):
    fill(checkpoint, store, [EXPERT])
    path = store.directory / EXPERT.path
    path.write_bytes(path.read_bytes()[:-1])
    flip(store.directory / "tokenizer.json")
    again = PartialStore.open(store.directory)
    assert not again.has(EXPERT)
    assert again.missing() == [UnitName("file", "tokenizer.json")]


def test_a_config_that_does_not_fit_the_manifest(tiny, tmp_path):
    manifest = Checkpoint.open(tiny("mixtral")).manifest()
    other = Checkpoint.open(tiny("phimoe"))
    config = next(file for file in other.manifest().files if file.name == "config.json")
    forged = msgspec.structs.replace(manifest, files=(config,))
    store = PartialStore(tmp_path / "store", forged)
    receive(other, store, UnitName("file", "config.json"))
    with pytest.raises(
        CheckpointError, match=r"config.json describes a phimoe model, but the manifest a mixtral model"
    ):
        _ = store.layers


def test_directories_of_other_models(checkpoint, tiny, store, tmp_path):
    other: Manifest = Checkpoint.open(tiny(seed=1)).manifest()
    with pytest.raises(CheckpointError, match=r"holds parts of another model"):
        PartialStore(store.directory, other)
    with pytest.raises(CheckpointError, match=f"holds the model {store.model_digest}, not {other.model_digest}"):
        PartialStore.open(store.directory, other.model_digest)
    with pytest.raises(CheckpointError, match=r"is named after another model"):
        PartialStore(tmp_path / other.model_digest, checkpoint.manifest())


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x95\x01"])
def test_a_damaged_manifest(store, content):
    (store.directory / "manifest.msgpack").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest.msgpack is damaged .*; delete .* to fetch it anew"):
        PartialStore.open(store.directory)


def test_no_store_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a store: manifest.msgpack cannot be read"):
        PartialStore.open(tmp_path)


def test_a_directory_that_cannot_be_made(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written: Not a directory"):
        PartialStore(tmp_path / "file" / "store", checkpoint.manifest())


# --- full disks --------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_noticed_before_the_transfer(checkpoint, tmp_path):
    manifest = checkpoint.manifest()
    huge_bytes = 1 << 45
    tensor = msgspec.structs.replace(manifest.trunk.tensors[0], shape=(huge_bytes // 4,))
    trunk = msgspec.structs.replace(manifest.trunk, tensors=(tensor,), size_bytes=huge_bytes)
    store = PartialStore(tmp_path / "store", msgspec.structs.replace(manifest, trunk=trunk))
    with pytest.raises(CapacityError, match=r"the trunk needs 32.0 TiB more in .*; make room"):
        store.begin(TRUNK)


def test_a_disk_that_fills_up(checkpoint, store, monkeypatch):
    content = bytes(checkpoint.read_unit(EXPERT, 0, 1 << 30))
    store.begin(EXPERT)
    store.append(EXPERT, 0, content[:1000])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(CapacityError, match=r"the disk is full: .*001-003.bin.part needs"):
            store.append(EXPERT, 1000, content[1000:])
    store.append(EXPERT, 1000, content[1000:])  # somebody made room
    store.finish(EXPERT)
    assert store.has(EXPERT)


# --- threads -----------------------------------------------------------------------------------------------------


def test_units_are_received_in_parallel(checkpoint, store):
    fill(checkpoint, store, [])
    units = [unit for unit in store.manifest.units() if unit.kind == "expert"]
    failures: list[BaseException] = []

    def work(mine: list[UnitName]) -> None:
        try:
            for unit in mine:
                receive(checkpoint, store, unit, 3000)
                load_expert(store, unit.expert_id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(units[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert store.stored_experts() == frozenset(checkpoint.experts())
