"""A local server that speaks the hub's protocol, and the command that fetches from it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.forked import Forked, run

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/tiny-moe"


@dataclass
class Hub:
    """A repository, and what was asked of it.

    Attributes:
        stall_after_bytes: Longer answers stop there until ``released``.
        damaged: A file whose last byte is sent wrong.
        knows_ranges: Or it sends whole files always.
        breaks: So many answers with ranges break off halfway.
        spoiled: A file, and a byte of it that is sent wrong.
        sent_bytes: Of bodies.
        elsewhere: Weights are at a signed address on another host (localhost in place of 127.0.0.1).
        stale_after: So many answers such an address gives; then it is refused.
        signed: Signed addresses given out.
        keys: Host and key of requests that brought one.
    """

    directory: Path
    url: str = ""
    stall_after_bytes: int | None = None
    damaged: str = ""
    knows_ranges: bool = True
    breaks: int = 0
    spoiled: tuple[str, int] = ("", -1)
    sent_bytes: int = 0
    elsewhere: bool = False
    stale_after: int = 10
    signed: int = 0
    keys: list[tuple[str, str]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def gets(self, name: str) -> list[str]:
        """The Range headers of the downloads of a file."""
        return [span for method, path, span in self.asked if method == "GET" and path.endswith(f"/{name}")]


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    uses: dict[str, int] = {}

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
            if "Authorization" in self.headers:
                hub.keys.append((self.headers["Host"], self.headers["Authorization"]))
            if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
                siblings = [{"rfilename": f.name, "size": f.stat().st_size} for f in sorted(hub.directory.iterdir())]
                self._send(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode(), body)
                return
            file = hub.directory / path.rsplit("/", 1)[-1]
            if path.startswith("/signed/"):
                _, _, number, left = path.split("/")[:4]
                uses[number] = uses.get(number, 0) + 1
                if uses[number] > hub.stale_after:
                    self._send(403, b"stale", body)
                    return
                path = f"/{REPO}/resolve/{COMMIT}/{left}"
            elif hub.elsewhere and file.suffix == ".safetensors" and file.is_file():
                hub.signed += 1
                address = hub.url.replace("127.0.0.1", "localhost")
                headers = {
                    "Location": f"{address}/signed/{hub.signed}/{file.name}",
                    "X-Linked-Size": str(file.stat().st_size),
                    "X-Linked-Etag": f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"',
                    "X-Repo-Commit": COMMIT,
                }
                self._send(302, b"", body, headers)
                return
            if not path.startswith(f"/{REPO}/resolve/{COMMIT}/") or not file.is_file():
                self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
                return
            data = file.read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            if file.name == hub.damaged:
                data = data[:-1] + b"?"
            if file.name == hub.spoiled[0]:
                at = hub.spoiled[1]
                data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if not span or not body or not hub.knows_ranges:
                self._send(200, data, body, headers)
                return
            first, _, last = span.removeprefix("bytes=").partition("-")
            begin, end = int(first), int(last) + 1 if last else len(data)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            part = data[begin:end]
            if hub.breaks and len(part) > 1000:
                hub.breaks -= 1
                self._send(206, part, False, headers)
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                return
            self._send(206, part, body, headers)

        def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if not body:
                return
            hub.sent_bytes += len(data)
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


@contextmanager
def open_hub(repository: Path) -> Iterator[Hub]:
    made = Hub(repository)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(made))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # killed clients are part of the tests
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


def arguments(target: Path, name: str = REPO, *options: str) -> list[str]:
    return ["model", "fetch", name, "--to", str(target), *options]


def command(target: Path, name: str = REPO, *options: str) -> list[str]:
    """For tests that end the process before it has done its work."""
    return [sys.executable, "-m", "meshmoe.cli.main", *arguments(target, name, *options)]


def fetching(hub: Hub, target: Path, name: str = REPO, *options: str) -> Forked:
    """The same, without importing everything again."""
    said = target.parent / "said"
    return Forked(arguments(target, name, *options), environment(hub, target), [said, said])


def fetch(hub: Hub, target: Path, name: str = REPO, *options: str) -> subprocess.CompletedProcess[str]:
    return run(arguments(target, name, *options), environment(hub, target))
