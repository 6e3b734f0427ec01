"""More clients than the node serves at once, and clients that take their time."""

from __future__ import annotations

import resource
import socket
import time
from contextlib import suppress

import httpx
import pytest

from meshmoe.api import gate, server
from tests.api.scripted import ScriptedService
from tests.api.serving import Served

CROWD = 1200
MANY = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(20_000)) + b"\r\n"
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(path, data: bytes = b"") -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    while True:
        try:
            client.connect(str(path))
            break
        except BlockingIOError:  # the backlog is full: the server is about to accept
            time.sleep(0.01)
    if data:
        client.sendall(data)
    return client


def test_a_crowd_of_idle_connections_is_bounded_and_leaves_no_trace(service: ScriptedService, tmp_path) -> None:
    with Served(service, tmp_path / "m.sock") as served:
        crowd = []
        for _ in range(CROWD):
            crowd.append(connect(served.path))
        refused = connect(served.path)
        assert refused.recv(4096).startswith(b"HTTP/1.1 503 ")
        assert refused.recv(4096) == b"", "and it is closed"
        for client in [*crowd, refused]:
            client.close()
        deadline_s = time.monotonic() + 20
        while True:
            try:
                with served.client() as client:
                    assert client.get("/health").status_code == 200
                break
            except (httpx.HTTPError, AssertionError):
                assert time.monotonic() < deadline_s
                time.sleep(0.1)


def test_heads_that_drip_in_do_not_keep_others_waiting(service: ScriptedService, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 1.0)
    with Served(service, tmp_path / "m.sock") as served:
        slow = [connect(served.path, b"GET /health HTTP/1.1\r\nHost: localh") for _ in range(50)]
        with served.client() as client:
            began_s = time.monotonic()
            assert client.get("/health").status_code == 200
            assert time.monotonic() - began_s < 5
        for one in slow[:5]:  # the time for a head is over: cut off, whether or not a byte drips in
            data = one.recv(4096)
            while data:
                data = one.recv(4096)
        for one in slow:
            one.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (MANY, 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400),
        (CHUNKED + b"FFFFFFFFFFFFFFFF\r\n", 408),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 413),
    ],
)
def test_heads_that_are_too_much_end_in_an_error(service, tmp_path, monkeypatch, head: bytes, status: int) -> None:
    """At once, or when the time for what is announced is over, and then the connection is closed."""
    monkeypatch.setattr(gate, "BODY_READ_S_MAX", 0.5)
    monkeypatch.setattr(gate, "DISCARD_S_MAX", 0.5)
    with Served(service, tmp_path / "m.sock") as served:
        with connect(served.path) as client:
            answer = b""
            with suppress(BrokenPipeError, ConnectionResetError):  # it need not be read to its end
                client.sendall(head)
            with suppress(ConnectionResetError):
                while data := client.recv(4096):
                    answer += data
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        with served.client() as http:
            assert http.get("/health").status_code == 200
