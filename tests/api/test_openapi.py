"""The published description, and schemathesis on it: whatever it makes of the description, answers keep to it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from meshmoe.api.openapi import description
from meshmoe.node.mesh_keeper import TokenStatus
from tests.api.scripted import ScriptedService
from tests.api.serving import Served

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
schema = schemathesis.openapi.from_dict(description())


class Keeper:
    """Keeps tokens, as a node in a mesh would."""

    def __init__(self) -> None:
        self._tokens: list[TokenStatus] = []

    def tokens(self) -> list[TokenStatus]:
        return self._tokens

    def new_token(self, lifetime_s: int, label: str) -> TokenStatus:
        made = TokenStatus(
            id="12ab", label=label, by="a", issued_s=1, expires_s=lifetime_s, revoked=False, word="mm1-x"
        )
        self._tokens = [made]
        return made

    def revoke_token(self, token: str) -> None:
        pass

    def rotate_secret(self) -> None:
        pass

    async def expel(self, node: str) -> None:
        pass


class Service(ScriptedService):
    def keeper(self) -> Keeper:
        return self._keeper

    def __init__(self) -> None:
        super().__init__()
        self._keeper = Keeper()


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory):
    """A TCP address that stands before the Unix socket, since schemathesis knows no such sockets."""
    path = tmp_path_factory.mktemp("o") / "m.sock"
    with Served(Service(), path):
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=_pass_on, args=(listener, path), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.close()


def _pass_on(listener: socket.socket, path: Path) -> None:
    def copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(str(path))
        for pair in ((client, upstream), (upstream, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


def test_it_is_published(tmp_path: Path) -> None:
    with Served(Service(), tmp_path / "m.sock") as served, served.client() as client:
        assert client.get("/openapi.json").json()["paths"].keys() == description()["paths"].keys()


@schema.parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=[*HealthCheck])
def test_answers_keep_to_it(case, base_url: str) -> None:
    if isinstance(case.body, dict) and case.body.get("stream"):
        case.body["stream"] = False  # a stream's answer is of another type, which the description leaves to docs/api.md
    if isinstance(case.body, dict):
        case.body["max_tokens"] = 2
    try:
        case.call_and_validate(base_url=base_url, checks=CHECKS, timeout=20)
    except httpx.HTTPError:
        raise AssertionError("no answer") from None
