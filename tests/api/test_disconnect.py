"""Clients that go away, do not read, or are still there when the node stops."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from meshmoe.api import connection, gate, server
from tests.api.serving import Served, events

ENDLESS = {"prompt": "x", "max_tokens": 100_000, "stream": True}


@pytest.fixture(autouse=True)
def long_context(served: Served) -> None:
    served.service.context_tokens = 1 << 20


def raw_request(served: Served, body: dict[str, Any], receive_buffer: int | None = None) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(30)
    raw.connect(str(served.path))
    data = json.dumps(body).encode()
    raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    return raw


def test_leaving_a_stream_cancels_it(served: Served) -> None:
    served.service.delay_s = 0.01
    with served.client() as client, client.stream("POST", "/v1/completions", json=ENDLESS) as response:
        for count, _ in enumerate(response.iter_lines()):
            if count == 6:
                assert served.service.active == 1
                break
    served.wait_until(lambda: served.service.active == 0)


def test_leaving_before_the_first_token_cancels_it(served: Served) -> None:
    served.service.delay_s = 60
    raw = raw_request(served, ENDLESS)
    served.wait_until(lambda: served.service.active == 1)
    raw.close()
    served.wait_until(lambda: served.service.active == 0)


def test_leaving_while_waiting_for_a_whole_answer_cancels_it(served: Served) -> None:
    served.service.delay_s = 0.01
    with served.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json={**ENDLESS, "stream": False}, timeout=0.3)
    served.wait_until(lambda: served.service.active == 0)


def test_leaving_cancels_all_choices(served: Served) -> None:
    served.service.delay_s = 0.01
    raw = raw_request(served, {**ENDLESS, "n": 20})
    served.wait_until(lambda: served.service.active == 8)
    raw.close()
    served.wait_until(lambda: served.service.active == 0)
    assert served.service.started == 8


def test_leaving_in_the_middle_of_the_body(served: Served) -> None:
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(served.path))
    raw.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt":')
    time.sleep(0.05)
    raw.close()
    with served.client() as client:
        assert client.get("/health").status_code == 200


def test_a_slow_body_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_READ_S_MAX", 0.2)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(30)
        raw.connect(str(served.path))
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408" in raw.recv(65536).splitlines()[0]


def test_a_slow_head_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.stop()
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.2)
    with Served(served.service, served.path) as again, socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(30)
        raw.connect(str(again.path))
        raw.sendall(b"POST /v1/compl")
        assert raw.recv(65536) == b""


def test_a_client_that_does_not_read_blocks_only_itself(served: Served) -> None:
    raw = raw_request(served, ENDLESS)
    served.wait_until(lambda: served.service.active == 1)
    time.sleep(0.3)
    body = {"prompt": "x", "max_tokens": 50, "stream": True}
    with served.client() as client:
        begun_s = time.monotonic()
        with client.stream("POST", "/v1/completions", json=body) as response:
            assert events(response)[-1] == "[DONE]"
        assert time.monotonic() - begun_s < 20
    assert served.service.active == 1
    raw.close()
    served.wait_until(lambda: served.service.active == 0)


def test_a_client_that_does_not_read_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WRITE_S_MAX", 0.3)
    with raw_request(served, ENDLESS):
        served.wait_until(lambda: served.service.active == 1)
        served.wait_until(lambda: served.service.active == 0, timeout_s=20)  # of 30 s otherwise


def test_stop_ends_open_streams_with_an_error(served: Served) -> None:
    served.service.delay_s = 0.01
    lines: list[str] = []

    def listen() -> None:
        with served.client() as client, client.stream("POST", "/v1/completions", json=ENDLESS) as response:
            lines.extend(events(response))

    listener = threading.Thread(target=listen)
    listener.start()
    served.wait_until(lambda: served.service.active == 1)
    time.sleep(0.1)
    assert served.stops_at_once()
    listener.join(30)
    assert json.loads(lines[-1])["error"]["message"] == "this node is stopping"
    assert served.service.active == 0
    assert not served.path.exists()


def test_stop_refuses_those_who_wait_for_a_whole_answer(served: Served) -> None:
    served.service.delay_s = 60
    answers: list[httpx.Response] = []

    def ask() -> None:
        with served.client() as client:
            answers.append(client.post("/v1/completions", json={"prompt": "x"}))

    asker = threading.Thread(target=ask)
    asker.start()
    served.wait_until(lambda: served.service.active == 1)
    assert served.stops_at_once()
    asker.join(30)
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["type"] == "not_serving_error"


def test_stop_does_not_wait_for_a_client_that_does_not_read(served: Served) -> None:
    with raw_request(served, ENDLESS):
        served.wait_until(lambda: served.service.active == 1)
        time.sleep(0.3)
        assert served.stop() < 20, "a grace of a second"
    assert served.service.active == 0


def test_stop_does_not_wait_for_idle_connections(served: Served) -> None:
    with served.client() as client, socket.socket(socket.AF_UNIX) as raw:
        client.get("/health")
        raw.connect(str(served.path))
        time.sleep(0.05)
        assert served.stops_at_once()


def test_two_requests_at_once_on_a_connection_that_breaks(served: Served) -> None:
    served.service.delay_s = 0.01
    raw = raw_request(served, ENDLESS)
    raw.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    served.wait_until(lambda: served.service.active == 1)
    raw.close()
    served.wait_until(lambda: served.service.active == 0)
    assert served.stops_at_once()


def test_more_connections_than_allowed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 2)
    held = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for raw in held:
        raw.connect(str(served.path))
    time.sleep(0.1)
    with served.client() as client:
        assert client.get("/health").status_code == 503
        for raw in held:
            raw.close()
        served.wait_until(lambda: client.get("/health").status_code == 200)


def test_an_endless_body_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "DISCARD_S_MAX", 0.3)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(30)
        raw.connect(str(served.path))
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        begun_s = time.monotonic()
        with pytest.raises(OSError):  # broken pipe or reset, as it comes
            while True:
                raw.sendall(piece)
        assert time.monotonic() - begun_s < 5, "and not after 30 s"
    assert served.stops_at_once()
