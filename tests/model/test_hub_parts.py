"""``meshmoe model fetch --part`` and its like: the trunk and some experts, by byte ranges."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.hub_ranges import RangeReader
from meshmoe.model.store import PartialStore
from meshmoe.model.tensor_files import TensorFiles
from meshmoe.model.tiny import make_tiny_checkpoint
from tests.forked import run
from tests.model.hub_support import COMMIT, REPO, Hub, command, environment, fetch, fetching, open_hub

HALF = ("--part", "1/2")
OTHER_HALF = ("--part", "2/2")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub")
    make_tiny_checkpoint("qwen3_moe", directory, max_shard_bytes=200_000, dtype=torch.bfloat16)
    (directory / "README.md").write_text("words")
    return directory


@pytest.fixture
def hub(repository: Path) -> Iterator[Hub]:
    with open_hub(repository) as made:
        yield made


@pytest.fixture(scope="module")
def manifest(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "tiny.manifest"
    done = meshmoe("model", "manifest", str(repository), "--to", str(path))
    assert done.stdout.strip() == Checkpoint.open(repository).manifest().model_digest
    return path


def meshmoe(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    return done


def check_units(store: PartialStore, whole: Checkpoint) -> None:
    """All that the store has is what the checkpoint has."""
    store.verify_trunk()
    size = whole.trunk_bytes
    assert store.read_trunk(0, size) == whole.read_trunk(0, size)
    for expert in store.stored_experts():
        assert store.read_expert_unit(expert) == whole.read_expert_unit(expert)


def test_a_part_has_the_model_s_name_and_the_other_part_needs_no_second_reading(hub: Hub, tmp_path: Path) -> None:
    whole = Checkpoint.open(hub.directory)
    done = fetch(hub, tmp_path / "a", REPO, *HALF)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"meshmoe join --model {tmp_path / 'a'}\n"
    total = whole.trunk_bytes + sum(map(whole.expert_bytes, whole.experts()))
    assert total < hub.sent_bytes < 1.4 * total, "all of it passes by, once"
    one = PartialStore.open(tmp_path / "a", whole.manifest().model_digest)
    assert not one.missing()
    check_units(one, whole)
    assert not [path for path in (tmp_path / "a").iterdir() if path.name.startswith(".") or path.suffix == ".part"]

    hub.sent_bytes = 0
    done = fetch(hub, tmp_path / "b", REPO, *OTHER_HALF, "--manifest", str(tmp_path / "a" / "manifest.msgpack"))
    assert done.returncode == 0, done.stderr
    other = PartialStore.open(tmp_path / "b", one.model_digest)
    check_units(other, whole)
    assert one.stored_experts() | other.stored_experts() == set(whole.experts())
    assert not one.stored_experts() & other.stored_experts()
    assert hub.sent_bytes < 0.9 * total

    hub.sent_bytes = 0  # and more into the first one: what is there is not fetched again
    assert fetch(hub, tmp_path / "a", REPO, "--part", "1-2/2").returncode == 0
    assert PartialStore.open(tmp_path / "a").stored_experts() == set(whole.experts())
    assert hub.sent_bytes < 0.9 * total


def test_capacity_profile_and_trunk_only_say_how_much(hub: Hub, tmp_path: Path, manifest: Path) -> None:
    whole = Checkpoint.open(hub.directory)
    experts = len(whole.layout.experts())
    for name, options, count in (
        ("none", ("--trunk-only",), 0),
        ("quarter", ("--capacity", "25%", "--name", "attic"), experts // 4),
        ("box", ("--profile", "pi5-8gb"), experts),
    ):
        done = fetch(hub, tmp_path / name, REPO, *options, "--manifest", str(manifest))
        assert done.returncode == 0, done.stderr
        store = PartialStore.open(tmp_path / name)
        assert len(store.stored_experts()) == count
        check_units(store, whole)
    told = json.loads(meshmoe("model", "info", str(tmp_path / "quarter"), "--json").stdout)
    assert (told["experts_here"], sum(told["experts_per_layer"])) == (experts // 4, experts)
    assert f"{experts // 4} of {experts} experts" in meshmoe("model", "info", str(tmp_path / "quarter")).stdout


def test_goes_on_where_it_was_killed(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "model"
    hub.stall_after_bytes = 20_000  # longer than an expert's matrix, shorter than the embeddings
    process = fetching(hub, target, REPO, *HALF)
    assert hub.stalled.wait(100)
    digests = target / f".hub-{COMMIT[:16]}" / "digests"
    deadline = time.monotonic() + 60
    while digests.read_text().count("\n") < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    passed = digests.read_text().splitlines()
    assert len(passed) >= 4
    with digests.open("a") as file:
        file.write(passed[0][:30])  # what a failing power supply leaves
    # An expert that was kept, and that the same power failure emptied.
    kept = [path for path in target.glob("experts/*.part") if f"experts/{path.stem} " in " ".join(passed)]
    assert kept
    kept[0].write_bytes(bytes(kept[0].stat().st_size))
    hub.stall_after_bytes = None
    hub.released.set()
    before = len(hub.asked)
    done = fetch(hub, target, REPO, *HALF)
    assert done.returncode != 0
    assert "is not what the manifest says, and was deleted" in done.stderr
    second = {(path.rsplit("/", 1)[-1], span) for _, path, span in hub.asked[before:]}
    done = fetch(hub, target, REPO, *HALF)
    assert done.returncode == 0, done.stderr
    whole = Checkpoint.open(hub.directory)
    store = PartialStore.open(target, whole.manifest().model_digest)
    check_units(store, whole)
    assert len(store.stored_experts()) == len(whole.layout.experts()) // 2
    files = TensorFiles(hub.directory)
    for expert in whole.experts():
        had_passed = f"experts/{expert.layer:03d}-{expert.index:03d}.bin " in " ".join(passed)
        for piece in whole.layout.layer_of(expert).pieces:
            path, begin = files.place(piece.key_of(expert.index))
            asked = (path.name, f"bytes={begin}-{begin + piece.spec.size_bytes - 1}") in second
            assert asked != had_passed


def test_answers_that_break_off_are_taken_up(hub: Hub, tmp_path: Path, manifest: Path) -> None:
    hub.breaks = 5
    done = fetch(hub, tmp_path / "model", REPO, *HALF, "--manifest", str(manifest))
    assert done.returncode == 0, done.stderr
    assert hub.breaks == 0
    check_units(PartialStore.open(tmp_path / "model"), Checkpoint.open(hub.directory))


def test_signed_addresses_are_renewed_and_get_no_key(
    hub: Hub, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.elsewhere = True
    done = fetch(hub, tmp_path / "model", REPO, *HALF, "--manifest", str(manifest))
    assert done.returncode == 0, done.stderr
    check_units(PartialStore.open(tmp_path / "model"), Checkpoint.open(hub.directory))
    assert hub.signed > len(list(hub.directory.glob("*.safetensors"))), "some went stale"
    assert hub.keys, "the hub itself is shown the key"
    assert {host.split(":")[0] for host, _ in hub.keys} == {"127.0.0.1"}


def test_wrong_bytes_are_refused_and_fetched_again(hub: Hub, tmp_path: Path, manifest: Path) -> None:
    files = TensorFiles(hub.directory)
    key = next(key for key in sorted(files.tensors) if ".experts.0." in key)
    path, begin = files.place(key)
    hub.spoiled = (path.name, begin + 7)
    done = fetch(hub, tmp_path / "model", REPO, *HALF, "--manifest", str(manifest))
    assert done.returncode == 3
    assert "expert 0/0 is not what the manifest says, and was deleted" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not PartialStore.open(tmp_path / "model").has_expert(Checkpoint.open(hub.directory).layout.experts()[0])
    hub.spoiled = ("", -1)
    assert fetch(hub, tmp_path / "model", REPO, *HALF).returncode == 0
    check_units(PartialStore.open(tmp_path / "model"), Checkpoint.open(hub.directory))


def test_a_hub_without_ranges_gets_a_clear_line_and_sends_no_weights(hub: Hub, tmp_path: Path) -> None:
    hub.knows_ranges = False
    done = fetch(hub, tmp_path / "model", REPO, *HALF)
    assert done.returncode == 3
    assert "sends whole files only, no parts" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--part", "3/2"), "write the second of three parts as 2/3"),
        (("--part", "0/2"), "write the second of three parts as 2/3"),
        (("--part", "1/2", "--trunk-only"), "give one"),
        (("--capacity", "lots"), "write a size like 400MiB"),
        (("--name", "attic"), "--name goes with --capacity"),
        (("--manifest", __file__), "a whole model needs none"),
        (("--part", "1/2", "--manifest", __file__), "cannot be used as a manifest"),
    ],
)
def test_errors_are_one_line(hub: Hub, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    done = fetch(hub, tmp_path / "model", REPO, *options)
    assert done.returncode in (2, 3)
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not hub.asked


def test_a_manifest_of_another_model_is_refused(hub: Hub, tmp_path: Path) -> None:
    other = make_tiny_checkpoint("qwen3_moe", tmp_path / "other", seed=1)  # float32: other sizes
    written = tmp_path / "other.manifest"
    written.write_bytes(Checkpoint.open(other).manifest().encode())
    done = fetch(hub, tmp_path / "model", REPO, *HALF, "--manifest", str(written))
    assert done.returncode == 3
    assert "manifest" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_headers_that_lie_are_refused(tmp_path: Path, repository: Path) -> None:
    lying = tmp_path / "lying"
    lying.mkdir()
    for file in repository.iterdir():
        (lying / file.name).write_bytes(file.read_bytes())
    shard = sorted(lying.glob("*.safetensors"))[0]
    data = shard.read_bytes()
    for spoiled, words in (
        ((1 << 60).to_bytes(8, "little") + data[8:], "is not a safetensors file"),
        (data[:8] + b"[" + data[9:], "is not a safetensors file"),
        (data[:-1], "truncated"),
    ):
        shard.write_bytes(spoiled)
        with open_hub(lying) as hub:
            done = fetch(hub, tmp_path / "model", REPO, *HALF)
        assert done.returncode == 3
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_server_that_sends_other_bytes_than_asked_for_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size that the hub told at first is part of what is compared."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    from meshmoe.core.errors import CheckpointError
    from meshmoe.model import hub_ranges

    reader = RangeReader(REPO, COMMIT)
    name = sorted(hub.directory.glob("*.safetensors"))[0].name
    url = f"{hub.url}/{REPO}/resolve/{COMMIT}/{name}"
    reader._sources[name] = hub_ranges._Source(url, url, 7)
    with pytest.raises(CheckpointError, match="the server sent"):
        reader.read_into(name, 0, memoryview(bytearray(4)))


def test_interrupted_it_ends_soon_and_goes_on_later(hub: Hub, tmp_path: Path, manifest: Path) -> None:
    target = tmp_path / "model"
    hub.stall_after_bytes = 20_000
    options = (*HALF, "--manifest", str(manifest))
    process = subprocess.Popen(command(target, REPO, *options), env=environment(hub, target), stderr=subprocess.PIPE)
    assert hub.stalled.wait(100)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    hub.released.set()  # the answer under way breaks off: it must not be asked for again
    began = time.monotonic()
    _, words = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert b"Traceback" not in words
    hub.stall_after_bytes = None
    assert fetch(hub, target, REPO, *options).returncode == 0
    check_units(PartialStore.open(target), Checkpoint.open(hub.directory))
