"""``meshmoe model fetch`` from a local server that speaks the hub's protocol."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.tiny import make_tiny_checkpoint
from tests.model.hub_support import Hub, fetch, fetching, open_hub

LARGE = "vocab.txt"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub")
    make_tiny_checkpoint("qwen3_moe", directory, max_shard_bytes=200_000)
    (directory / "pytorch_model.bin").write_bytes(b"the same weights again" * 100)
    (directory / "README.md").write_text("words")
    # The library writes what it gets in pieces of 10 MiB, so only a larger file can be half there.
    (directory / LARGE).write_bytes(random.Random(1).randbytes(12 << 20))
    return directory


@pytest.fixture
def hub(repository: Path) -> Iterator[Hub]:
    with open_hub(repository) as made:
        yield made


def weights(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def test_fetches_what_a_node_uses_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "model"
    done = fetch(hub, target)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"meshmoe join --model {target}\n"
    assert "of other files left out" in done.stderr
    for file in weights(hub.directory):
        assert (target / file.name).read_bytes() == file.read_bytes()
    assert not (target / "pytorch_model.bin").exists()
    ours, theirs = Checkpoint.open(target), Checkpoint.open(hub.directory)
    assert ours.manifest().model_digest == theirs.manifest().model_digest


def test_goes_on_where_it_was_killed(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "model"
    hub.stall_after_bytes = 11 << 20
    process = fetching(hub, target)
    assert hub.stalled.wait(100)
    time.sleep(0.5)  # for what was sent to arrive on its disk
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.stall_after_bytes = None
    hub.released.set()
    always = {"config.json", "model.safetensors.index.json"}  # small, and looked at before anything else
    finished = {file.name for file in target.iterdir() if file.is_file()} - always
    before = len(hub.asked)
    assert fetch(hub, target).returncode == 0
    asked = [(path.rsplit("/", 1)[-1], span) for method, path, span in hub.asked[before:] if method == "GET"]
    assert [span for name, span in asked if name == LARGE] == [f"bytes={10 << 20}-"]  # no byte a second time
    assert finished
    assert not finished & {name for name, _ in asked}
    for file in [target / LARGE, *weights(target)]:
        assert file.read_bytes() == (hub.directory / file.name).read_bytes()


def test_a_damaged_file_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "model"
    hub.damaged = LARGE
    done = fetch(hub, target)
    assert done.returncode == 3
    assert f"{LARGE} arrived damaged" in done.stderr
    assert not [file for file in target.iterdir() if LARGE in file.name]


def test_a_model_without_experts_is_refused_before_its_weights(hub: Hub, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    dense.mkdir()
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 16, "num_hidden_layers": 1}
    (dense / "config.json").write_text(json.dumps(config))
    (dense / "model.safetensors").write_bytes(b"x" * 1000)
    hub.directory = dense
    done = fetch(hub, tmp_path / "model")
    assert done.returncode != 0
    assert "expert" in done.stderr
    assert hub.gets("model.safetensors") == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/none", "there is no model org/none on the hub"),
        ("not a name", "is not the name of a model"),
    ],
)
def test_errors_are_one_line(hub: Hub, tmp_path: Path, name: str, words: str) -> None:
    done = fetch(hub, tmp_path / "model", name)
    assert done.returncode != 0
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
