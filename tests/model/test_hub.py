"""``meshmoe model fetch`` from a local server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.tiny import make_tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/tiny-moe"


@dataclass
class Hub:
    """A repository, and what was asked of it."""

    directory: Path
    url: str = ""
    break_after_bytes: int | None = None
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
            limit = hub.break_after_bytes
            if limit is not None and len(data) > limit:
                self.wfile.write(data[:limit])
                self.wfile.flush()
                self.connection.close()
                return
            self.wfile.write(data)

    return Handler


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub")
    make_tiny_checkpoint("qwen3_moe", directory, max_shard_bytes=200_000)
    (directory / "pytorch_model.bin").write_bytes(b"the same weights again" * 100)
    (directory / "README.md").write_text("words")
    return directory


@pytest.fixture
def hub(repository: Path) -> Iterator[Hub]:
    made = Hub(repository)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(made))
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(hub: Hub, target: Path, *arguments: str, name: str = REPO) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(target.parent / "hf"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "3",
        "HF_HUB_ETAG_TIMEOUT": "3",
        "HF_HUB_DISABLE_XET": "1",
        "MESHMOE_DEBUG": "",
    }
    command = [sys.executable, "-m", "meshmoe.cli.main", "model", "fetch", name, "--to", str(target), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


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
    before = len(hub.asked)
    assert fetch(hub, target).returncode == 0
    again = [path for method, path, _ in hub.asked[before:] if method == "GET" and path.endswith(".safetensors")]
    assert again == []


def test_goes_on_where_it_was_broken_off(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "model"
    largest = max(weights(hub.directory), key=lambda file: file.stat().st_size)
    hub.break_after_bytes = largest.stat().st_size // 2
    broken = fetch(hub, target)
    assert broken.returncode == 3
    assert "the same command goes on later" in broken.stderr
    assert len(broken.stderr.strip().splitlines()) <= 20
    hub.break_after_bytes = None
    before = len(hub.gets(largest.name))
    assert fetch(hub, target).returncode == 0
    assert [int(span.split("=")[1].split("-")[0]) > 0 for span in hub.gets(largest.name)[before:]] == [True]
    assert (target / largest.name).read_bytes() == largest.read_bytes()


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
    ("name", "arguments", "words"),
    [
        ("org/none", (), "there is no model org/none on the hub"),
        ("not a name", (), "is not the name of a model"),
    ],
)
def test_errors_are_one_line(hub: Hub, tmp_path: Path, name: str, arguments: tuple[str, ...], words: str) -> None:
    done = fetch(hub, tmp_path / "model", *arguments, name=name)
    assert done.returncode != 0
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
