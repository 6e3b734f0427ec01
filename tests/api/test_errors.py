"""Every way in which a request can be wrong, and what the client is told."""

from __future__ import annotations

import json
import logging
import socket
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest

from meshmoe.core.errors import CapacityError, ExpertUnavailableError, MeshmoeError, OverloadedError
from tests.api.serving import Served, events

HELLO = [{"role": "user", "content": "hello"}]


def error_of(response: httpx.Response) -> dict[str, Any]:
    answer = response.json()
    assert set(answer) == {"error"}
    error: dict[str, Any] = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"prompt": "a",\n "max_tokens" 3}', "line 2 column 15"),
        (b'{"prompt": "a"', "line 1 column 15"),
        (b"", "empty"),
        (b"{", "line 1 column 2"),
        (b'{"prompt": "\xff"}', "not UTF-8, byte 12"),
        (b'{"prompt": NaN}', "byte 11"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": "a", "zz": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_json(served: Served, body: bytes, words: str) -> None:
    with served.client() as client:
        response = client.post("/v1/completions", content=body)
    assert response.status_code == 400
    error = error_of(response)
    assert words in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("completions", [1], None, "must be a JSON object"),
        ("completions", {}, "prompt", "prompt is missing"),
        ("completions", {"prompt": 3}, "prompt", "expected str | array, got int"),
        ("completions", {"prompt": []}, "prompt", "expected a string"),
        ("completions", {"prompt": ["a", 1]}, "prompt", "expected a string"),
        ("completions", {"prompt": [["a"]]}, "prompt[0][0]", "expected int, got str"),
        ("completions", {"prompt": [999_999]}, "prompt", "vocabulary of 4096"),
        ("completions", {"prompt": [-1]}, "prompt", "vocabulary"),
        ("completions", {"prompt": [[2**70]]}, "prompt", "vocabulary"),
        ("completions", {"prompt": "x", "max_tokens": "3"}, "max_tokens", "expected int, got str"),
        ("completions", {"prompt": "x", "max_tokens": 0}, "max_tokens", ">= 1"),
        ("completions", {"prompt": "x", "max_tokens": True}, "max_tokens", "got bool"),
        ("completions", {"prompt": "x", "temperature": 3}, "temperature", "<= 2"),
        ("completions", {"prompt": "x", "temperature": "hot"}, "temperature", "expected float, got str"),
        ("completions", {"prompt": "x", "n": 1000}, "n", "<= 128"),
        ("completions", {"prompt": ["x"] * 100, "n": 2}, "prompt", "more than 128"),
        ("completions", {"prompt": "x", "seed": 2**70}, "seed", "<="),
        ("completions", {"prompt": "x", "stop": ["a", 3]}, "stop[1]", "expected str"),
        ("completions", {"prompt": "x", "stop": ["a"] * 17}, "stop", "length <= 16"),
        ("completions", {"prompt": "x", "stop": ""}, "stop", "length >= 1"),
        ("completions", {"prompt": "x", "logprobs": 21}, "logprobs", "<= 20"),
        ("completions", {"prompt": "x", "logprobs": 1, "echo": True}, "logprobs", "together with echo"),
        ("completions", {"prompt": "x", "suffix": "y"}, "suffix", "not supported"),
        ("completions", {"prompt": "x", "best_of": 3}, "best_of", "not supported"),
        ("completions", {"prompt": "x", "presence_penalty": 2.5}, "presence_penalty", "<= 2"),
        ("completions", {"prompt": "x", "frequency_penalty": "much"}, "frequency_penalty", "expected float, got str"),
        ("completions", {"prompt": "x", "logit_bias": {"1": 200}}, "logit_bias[...]", "<= 100"),
        ("completions", {"prompt": "x", "logit_bias": {"word": 2}}, "logit_bias", "regex"),
        ("completions", {"prompt": "x", "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "<= 1024"),
        ("completions", {"prompt": "x", "meshmoe": {"token_ids": 3}}, "meshmoe.token_ids", "expected bool"),
        ("chat/completions", {}, "messages", "messages is missing"),
        ("chat/completions", {"messages": []}, "messages", "length >= 1"),
        ("chat/completions", {"messages": ["hi"]}, "messages[0]", "expected object, got str"),
        ("chat/completions", {"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is missing"),
        ("chat/completions", {"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "got int"),
        ("chat/completions", {"messages": HELLO, "tools": [{"type": "function"}]}, "tools", "calls no tools"),
        ("chat/completions", {"messages": HELLO, "functions": [{"name": "f"}]}, "functions", "calls no tools"),
        ("chat/completions", {"messages": HELLO, "tool_choice": "required"}, "tool_choice", "calls no tools"),
        (
            "chat/completions",
            {"messages": HELLO, "response_format": {"type": "xml"}},
            "response_format.type",
            "invalid value 'xml'",
        ),
        ("chat/completions", {"messages": HELLO, "modalities": ["audio"]}, "modalities", "not supported"),
        ("chat/completions", {"messages": HELLO, "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ],
)
def test_wrong_fields_are_named(served: Served, path: str, body: Any, param: str | None, words: str) -> None:
    with served.client() as client:
        response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 400
    error = error_of(response)
    assert words in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert served.service.requests == []


@pytest.mark.parametrize(
    "neutral",
    [
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "modalities": ["text"]},
        {"tools": None, "stop": None, "n": None, "temperature": None, "stream": None, "seed": None},
    ],
)
def test_what_asks_for_nothing_is_no_error(served: Served, neutral: dict[str, Any]) -> None:
    with served.client() as client:
        body = {"messages": HELLO, "max_tokens": 1, **neutral}
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_unknown_model(served: Served) -> None:
    with served.client() as client:
        posted = client.post("/v1/completions", json={"prompt": "x", "model": "gpt-5"})
        listed = client.get("/v1/models/org/gpt-5")
    for response in (posted, listed):
        assert response.status_code == 404
        assert error_of(response)["code"] == "model_not_found"
        assert "'edge-12m'" in error_of(response)["message"]


def test_prompt_longer_than_the_context(served: Served) -> None:
    with served.client() as client:
        exact = client.post("/v1/completions", json={"prompt": [5] * 512})
        chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "word " * 3000}]})
        fits = client.post("/v1/completions", json={"prompt": [5] * 511})
        begun_s = time.monotonic()
        huge = client.post("/v1/completions", json={"prompt": "words " * 1_300_000})
        assert time.monotonic() - begun_s < 2
        many = client.post("/v1/completions", json={"prompt": [5] * 2_000_000})
    assert fits.status_code == 200
    assert "characters" in error_of(huge)["message"]
    for response in (exact, chat, huge, many):
        assert response.status_code == 400
        error = error_of(response)
        assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")
        assert "512 tokens" in error["message"]
    assert "shorten it by at least 1" in error_of(exact)["message"]
    assert error_of(chat)["param"] == "messages"


def test_unknown_routes_and_methods(served: Served) -> None:
    with served.client() as client:
        embeddings = client.post("/v1/embeddings", json={"input": "x"})
        unknown = client.get("/v2/nothing")
        slash = client.get("/v1/models/")
        wrong = client.get("/v1/chat/completions")
        deleted = client.delete("/v1/models")
    assert embeddings.status_code == 404
    assert "no embeddings" in error_of(embeddings)["message"]
    assert unknown.status_code == 404
    assert "/v1/chat/completions" in error_of(unknown)["message"]
    assert slash.status_code == 404
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert "use POST" in error_of(wrong)["message"]
    assert deleted.status_code == 405


def test_not_ready(served: Served) -> None:
    served.service.not_ready = CapacityError("experts are missing: the mesh lacks 12 MiB")
    with served.client() as client:
        response = client.post("/v1/completions", json={"prompt": "x"})
        stream = client.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
        health = client.get("/health")
    for answer in (response, stream):
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert error_of(answer)["type"] == "capacity_error"
        assert "12 MiB" in error_of(answer)["message"]
    assert health.status_code == 503
    assert "12 MiB" in health.json()["reason"]


def test_starting_is_not_an_internal_error(served: Served) -> None:
    served.service.not_ready = MeshmoeError("the node is loading the trunk")
    with served.client() as client:
        response = client.post("/v1/completions", json={"prompt": "x"})
        models = client.get("/v1/models")
    assert response.status_code == 503
    assert error_of(response)["type"] == "not_serving_error"
    assert models.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_overloaded(served: Served, stream: bool) -> None:
    served.service.refuse = OverloadedError("too many requests")
    with served.client() as client:
        response = client.post("/v1/completions", json={"prompt": "x", "n": 3, "stream": stream})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert error_of(response)["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
def test_failure_before_the_first_token_has_a_status(served: Served, stream: bool) -> None:
    served.service.fail_after = (0, ExpertUnavailableError("expert 3/17 cannot be reached"))
    with served.client() as client:
        response = client.post("/v1/completions", json={"prompt": "x", "stream": stream})
    assert response.status_code == 503
    assert error_of(response)["type"] == "mesh_error"
    assert "3/17" in error_of(response)["message"]


def test_failure_in_a_stream_is_its_last_event(served: Served) -> None:
    served.service.fail_after = (2, ExpertUnavailableError("expert 3/17 cannot be reached"))
    served.service.delay_s = 0.01
    body = {"messages": HELLO, "stream": True}
    with served.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = events(response)
    assert response.status_code == 200
    assert json.loads(lines[-1])["error"]["type"] == "mesh_error"
    assert len(lines) == 4
    assert served.service.active == 0


def test_a_bug_is_one_line_in_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.service.fail_after = (0, KeyError("secret of the inside"))
    with caplog.at_level(logging.INFO), served.client() as client:
        response = client.post("/v1/completions", json={"prompt": "x"})
        assert client.get("/health").status_code == 200
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"
    assert "secret" not in response.text
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert ours == ["POST /v1/completions: KeyError: 'secret of the inside'"]


def test_quiet_when_all_goes_well(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), served.client() as client:
        client.post("/v1/completions", json={"prompt": "x"})
        client.post("/v1/completions", json={"prompt": 3})
        client.get("/nope")
    assert [record for record in caplog.records if record.name.startswith(("meshmoe", "hypercorn"))] == []


@pytest.mark.parametrize("chunked", [False, True])
def test_body_too_large(served: Served, chunked: bool) -> None:
    def pieces() -> Any:
        for _ in range(9):
            yield b" " * (1 << 20)

    with served.client() as client:
        response = client.post("/v1/completions", content=pieces() if chunked else b"".join(pieces()))
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"
        assert client.get("/health").status_code == 200
    served.wait_until(lambda: served.call(lambda: served.service.active) == 0)


def test_a_large_body_to_a_route_that_ignores_it_does_not_wedge_the_connection(served: Served) -> None:
    with served.client() as client:
        for _ in range(3):
            assert client.post("/nope", content=b"x" * (4 << 20)).status_code == 404


def test_garbage_is_refused(served: Served) -> None:
    for garbage in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"A" * 100_000):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(30)
            raw.connect(str(served.path))
            # Closing with some of it unread resets the connection.
            with suppress(ConnectionResetError, BrokenPipeError):
                raw.sendall(garbage)
                while raw.recv(65536):
                    pass
    with served.client() as client:
        assert client.get("/health").status_code == 200


def test_http2_is_not_spoken(served: Served) -> None:
    with served.client() as client:
        upgrade = client.get("/health", headers={"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c"})
    assert (upgrade.status_code, upgrade.http_version) == (200, "HTTP/1.1")
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(30)
        raw.connect(str(served.path))
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\n")
        assert b" 505" in raw.recv(65536).splitlines()[0]


def test_websockets_are_closed(served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(30)
        raw.connect(str(served.path))
        raw.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert b" 403" in raw.recv(65536).splitlines()[0]
