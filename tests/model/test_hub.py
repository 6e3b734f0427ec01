"""``meshmoe model fetch`` from a local server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.tiny import make_tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/tiny-moe"
LARGE = "vocab.txt"


@dataclass
class Hub:
    """A repository, and what was asked of it."""

    directory: Path
    url: str = ""
    stall_after_bytes: int | None = None
    damaged: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def gets(self, name: str) -> list[str]:
        """The Range headers of the downloads of a file."""
        return [span for method, path, span in self.asked if method == "GET" and path.endswith(f"/{name}")]


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path, _, _ = self.path.partition("?")
            span = self.headers.get("Range", "")
            hub.asked.append((self.command, path, span))
            if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
                siblings = [{"rfilename": f.name, "size": f.stat().st_size} for f in sorted(hub.directory.iterdir())]
                self._send(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode(), body)
                return
            file = hub.directory / path.rsplit("/", 1)[-1]
            if not path.startswith(f"/{REPO}/resolve/{COMMIT}/") or not file.is_file():
                self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
                return
            data = file.read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            if file.name == hub.damaged:
                data = data[:-1] + b"?"
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if not span or not body:
                self._send(200, data, body, headers)
                return
            first = int(span.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._send(206, data[first:], body, headers)

        def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if not body:
                return
            limit = hub.stall_after_bytes
            if limit is not None and len(data) > limit:
                self.wfile.write(data[:limit])
                self.wfile.flush()
                hub.stalled.set()
                hub.released.wait(60)
                self.close_connection = True
                return
            self.wfile.write(data)

    return Handler


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
    made = Hub(repository)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(made))
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def environment(hub: Hub, target: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(target.parent / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "MESHMOE_DEBUG": "",
    }


def command(target: Path, name: str = REPO) -> list[str]:
    return [sys.executable, "-m", "meshmoe.cli.main", "model", "fetch", name, "--to", str(target)]


def fetch(hub: Hub, target: Path, name: str = REPO) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(target, name), env=environment(hub, target), capture_output=True, text=True, timeout=120, check=False
    )


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
    process = subprocess.Popen(command(target), env=environment(hub, target), stderr=subprocess.DEVNULL)
    assert hub.stalled.wait(100)
    time.sleep(0.5)  # for what was sent to arrive on its disk
    process.kill()
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
