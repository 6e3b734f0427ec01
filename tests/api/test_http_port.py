from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from meshmoe.api.api_key import read_api_key
from meshmoe.api.loopback import parse_http_address
from meshmoe.core.errors import ConfigError
from tests.api.scripted import ScriptedService
from tests.api.serving import Served


@pytest.fixture
def port(service: ScriptedService, tmp_path: Path) -> Iterator[int]:
    with Served(service, tmp_path / "m.sock", ("127.0.0.1", 0)) as served:
        assert served.addresses is not None
        assert served.addresses.http is not None
        yield served.addresses.http[1]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:8080", ("127.0.0.1", 8080)),
        ("8080", ("127.0.0.1", 8080)),
        (":0", ("127.0.0.1", 0)),
        ("[::1]:8080", ("::1", 8080)),
        ("127.9.9.9:1", ("127.9.9.9", 1)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_http_address(text) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0:8080", "this machine only"),
        ("192.168.1.5:80", "this machine only"),
        ("example.org:80", "this machine only"),
        ("[::]:80", "this machine only"),
        ("localhost", "write it like"),
        ("localhost:", "write it like"),
        ("localhost:99999", "write it like"),
        ("localhost:-1", "write it like"),
        ("", "write it like"),
    ],
)
def test_unusable_addresses(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_http_address(text)


def test_serves(port: int) -> None:
    for name in ("127.0.0.1", "localhost"):
        headers = {"host": f"{name}:{port}"}
        response = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "x"}, headers=headers)
        assert response.status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:{port}", "sec-fetch-site": "same-origin"}, 200),
        ({"host": "[::1]:{port}"}, 200),
        ({"host": "app.localhost"}, 200),
    ],
)
def test_web_pages_are_kept_out(port: int, headers: dict[str, str], status: int) -> None:
    filled = {name: value.replace("{port}", str(port)) for name, value in headers.items()}
    response = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "x"}, headers=filled)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


def test_the_unix_socket_asks_for_no_host(served: Served) -> None:
    with served.client() as client:
        assert client.get("/health", headers={"host": "anything", "origin": "http://x"}).status_code == 200


def test_a_busy_port(service: ScriptedService, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {taken} of 127.0.0.1 is in use: give another with --http"):
            Served(service, tmp_path / "m.sock", ("127.0.0.1", taken)).__enter__()
    assert not (tmp_path / "m.sock").exists()


KEY = "k" * 24


@pytest.fixture
def keyed(service: ScriptedService, tmp_path: Path) -> Iterator[str]:
    with Served(service, tmp_path / "m.sock", ("0.0.0.0", 0), api_key=KEY) as served:
        assert served.addresses is not None
        assert served.addresses.http is not None
        yield f"http://127.0.0.1:{served.addresses.http[1]}"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", KEY])
def test_without_the_key_nothing_is_served(keyed: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    for method, path in (("GET", "/v1/models"), ("GET", "/mesh/status"), ("POST", "/mesh/leave"), ("GET", "/none")):
        response = httpx.request(method, keyed + path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert KEY not in response.text
    assert httpx.get(keyed + "/health").status_code == 200


def test_with_the_key_other_boxes_are_served(keyed: str) -> None:
    headers = {"authorization": f"bearer {KEY}", "host": "box.lan:8080"}
    assert httpx.post(keyed + "/v1/completions", json={"prompt": "x"}, headers=headers).status_code == 200
    assert httpx.get(keyed + "/v1/models", headers={**headers, "origin": "http://evil.example"}).status_code == 403


def test_the_unix_socket_needs_no_key(service: ScriptedService, tmp_path: Path) -> None:
    with Served(service, tmp_path / "m.sock", api_key=KEY) as served, served.client() as client:
        assert client.get("/v1/models").status_code == 200


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHMOE_API_KEY", raising=False)
    assert read_api_key(None) is None
    monkeypatch.setenv("MESHMOE_API_KEY", KEY)
    assert read_api_key(None) == KEY
    file = tmp_path / "key"
    file.write_text(f"  {KEY[1:]} \nrest\n")
    assert read_api_key(file) == KEY[1:]
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="16 to 512"):
        read_api_key(file)
    with pytest.raises(ConfigError, match="cannot read it"):
        read_api_key(tmp_path / "none")


def test_what_lets_others_into_the_mesh_is_for_the_socket_only(port: int) -> None:
    """Whoever can open a loopback port need not be this user: no token, and no say in who belongs to the mesh."""
    base = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{base}/mesh/status").json()["join_command"] == ""
    with httpx.stream("GET", f"{base}/mesh/events") as response:
        assert "mm1-" not in next(line for line in response.iter_lines() if line.startswith("data: "))
    for method, path in (
        ("GET", "/mesh/tokens"),
        ("POST", "/mesh/tokens"),
        ("DELETE", "/mesh/tokens/12"),
        ("POST", "/mesh/rotate"),
        ("POST", "/mesh/expel"),
    ):
        answer = httpx.request(method, base + path, json={"node": "b"} if path.endswith("expel") else None)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "socket_only"), path
