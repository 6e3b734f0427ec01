"""Ports, addresses and sockets that are in use or not ours; and one that is free and told."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from rich.console import Console

from meshmoe.cli.main import cli
from tests.node.bad_input.support import BOUND_S, Fails, Mesh, Models, ends_within


@pytest.mark.parametrize("lane", [0, 1, 2])
def test_busy_port(fails: Fails, models: Models, lane: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        listen = f"127.0.0.1:{taken - lane}"
        line = fails("--model", models.good, "--listen", listen, code=2)
    assert line.startswith("cannot listen on port ")
    assert "another program has it; stop that one, or listen on another port" in line


def test_an_address_of_another_machine(fails: Fails, models: Models) -> None:
    line = fails("--model", models.good, "--listen", "192.0.2.1:0", code=2)
    assert line.startswith("cannot listen on 192.0.2.1: this machine has no such address")


def test_busy_http_port(fails: Fails, models: Models) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        line = fails("--model", models.good, "--http", f"127.0.0.1:{taken}", code=2)
    assert line == f"port {taken} of 127.0.0.1 is in use: give another with --http"


def test_socket_in_use(fails: Fails, models: Models, mesh: Mesh) -> None:
    line = fails("--model", models.good, "--socket", mesh.socket_path, code=2)
    expected = f"socket {mesh.socket_path} is in use by a running node (pid {os.getpid()}): give another with --socket"
    assert line == expected
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(mesh.socket_path)), base_url="http://node") as client:
        assert client.get("/health").status_code == 200


def test_socket_path_of_something_else(fails: Fails, models: Models, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    assert "is not a socket" in fails("--model", models.good, "--socket", tmp_path / "notes", code=2)
    assert (tmp_path / "notes").read_text() == "precious"


def test_the_http_port_is_told(surroundings: Path, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr("meshmoe.cli.logs.Console", lambda **_: Console(file=said, width=200))
    answers: list[httpx.Response] = []

    def use_and_stop() -> None:
        deadline_s = time.monotonic() + BOUND_S
        while "look: meshmoe status" not in said.getvalue() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        try:
            (address,) = re.findall(r"API: (http://127\.0\.0\.1:[1-9]\d*/v1)\n", said.getvalue())
            answers.append(httpx.get(f"{address}/models"))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=use_and_stop)
    flags = (
        "--name",
        "alone",
        "--listen",
        "127.0.0.1:0",
        "--threads",
        "1",
        "--http",
        "127.0.0.1:0",
        "--log-format",
        "human",
    )
    user.start()
    with ends_within(2 * BOUND_S):
        result = CliRunner().invoke(cli, ["join", *flags, "--model", str(models.good)])
    user.join()
    assert (result.exit_code, result.stderr, result.stdout) == (0, "", "")
    (answer,) = answers
    assert answer.json()["data"][0]["id"] == "good"
