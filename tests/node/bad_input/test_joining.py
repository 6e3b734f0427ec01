"""Nobody there, somebody else there, or a mesh that refuses: what a newcomer is told."""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from meshmoe.core.errors import PeerError
from meshmoe.node import joining
from meshmoe.node.unit_client import UnitClient
from tests.node.bad_input.support import Fails, Mesh, Models, free_port, three_free_ports, word_for


def test_nothing_listens_there(fails: Fails) -> None:
    port = free_port()
    line = fails("--peer", f"127.0.0.1:{port}", code=5)
    assert line == f"cannot join: nothing listens on 127.0.0.1:{port}: is `meshmoe join` running there?"


def test_every_address_is_told(fails: Fails) -> None:
    ports = free_port(), free_port()
    line = fails("--peer", f"127.0.0.1:{ports[0]}", "--peer", f"127.0.0.1:{ports[1]}", code=5)
    assert all(f"127.0.0.1:{port}: " in line for port in ports)


@pytest.mark.parametrize(
    ("number", "words"),
    [(socket.EAI_NONAME, "there is no host named nobody.example"), (socket.EAI_AGAIN, "cannot be looked up now")],
)
def test_a_name_that_does_not_resolve(fails: Fails, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    real = socket.getaddrinfo

    def lookup(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("nobody.example", b"nobody.example"):
            raise socket.gaierror(number, "told by the test")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    line = fails("--peer", "nobody.example:7337", code=5)
    assert line.startswith("cannot join: nobody.example:7337: ")
    assert words in line


def test_a_name_that_cannot_be_one(fails: Fails) -> None:
    assert "'two..dots' cannot be a host name" in fails("--peer", "two..dots:7337", code=5)


def test_something_else_listens_there(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ANSWER_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = fails("--peer", word_for(port), code=5)
    assert line.startswith(f"cannot join: 127.0.0.1:{port} takes connections, but no node answered within 1 s: is it")


def test_an_address_without_a_token(fails: Fails, mesh: Mesh) -> None:
    line = fails("--peer", mesh.address, code=5)
    assert line == (
        f"cannot join: {mesh.address}: an address alone does not let this node in: run `meshmoe token new` on a member "
        "and give the word that it prints with --peer"
    )


def test_the_port_of_another_lane(fails: Fails, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ANSWER_TIMEOUT_S", 1.0)
    parts = mesh.nodes[0].parts
    assert parts is not None
    line = fails("--peer", word_for(parts.endpoints.data_port), code=5)
    assert "is it the control port of a node" in line


def test_joining_itself(fails: Fails) -> None:
    port = three_free_ports()
    line = fails("--listen", f"127.0.0.1:{port}", "--peer", f"127.0.0.1:{port}", code=5)
    assert line == f"cannot join: 127.0.0.1:{port} is this node itself: give the address of another one"


def test_no_way_there(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(*_: Any) -> None:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    monkeypatch.setattr(trio, "open_tcp_stream", unreachable)
    line = fails("--peer", "192.0.2.1:7337", code=5)
    assert line.startswith("cannot join: no way to 192.0.2.1:7337 (No route to host): check the address")


def test_silence(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: Any) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(joining, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(trio, "open_tcp_stream", silent)
    line = fails("--peer", "192.0.2.1:7337", code=5)
    assert line.startswith("cannot join: no answer from 192.0.2.1:7337 within 0 s: check the address and the firewall")


def test_a_model_that_cannot_be_fetched(fails: Fails, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lacks(*_: Any) -> None:
        raise PeerError("trunk could not be fetched from any peer: first does not have trunk")

    monkeypatch.setattr(UnitClient, "fetch", lacks)
    line = fails("--peer", mesh.word, code=5)
    assert line == (
        "cannot get the model of the mesh: trunk could not be fetched from any peer: first does not have trunk; "
        "start this node again to go on"
    )


def test_another_model(fails: Fails, models: Models, mesh: Mesh) -> None:
    line = fails("--model", models.other, "--peer", mesh.word, code=5)
    assert re.fullmatch(
        rf"{mesh.address} refused: this mesh serves model [0-9a-f]{{12}}, you brought [0-9a-f]{{12}}: "
        r"join without --model to take the mesh's, or start a mesh of your own",
        line,
    )


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_name_that_is_taken(fails: Fails, models: Models, mesh: Mesh, name: str) -> None:
    line = fails("--model", models.good, "--peer", mesh.word, "--name", name, code=5)
    assert line == f"{mesh.address} refused: a node named {name} is in the mesh already: choose another with --name"
    assert mesh.others_of_first()["second"] == "alive"


def test_capacity_too_small_in_a_mesh(fails: Fails, models: Models, mesh: Mesh) -> None:
    line = fails("--peer", mesh.word, "--model", models.good, "--capacity", "1KiB", code=4)
    assert "is too small for one expert" in line


def test_a_state_directory_that_is_a_file(fails: Fails, mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    line = fails("--peer", mesh.word, "--state", tmp_path / "notes", code=2)
    assert str(tmp_path / "notes") in line
    assert (tmp_path / "notes").read_text() == "precious"
