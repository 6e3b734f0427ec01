from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result

from meshmoe.cli import health
from meshmoe.cli.health import closed_ports
from tests.api.scripted import ScriptedService
from tests.api.serving import Served


def findings(result: Result) -> dict[str, dict[str, Any]]:
    return {finding["what"]: finding for finding in json.loads(result.stdout)}


def test_without_a_node(invoke: Callable[..., Result], tmp_path: Path) -> None:
    found = findings(invoke("doctor", "--no-ports", "--json", "--socket", str(tmp_path / "none.sock")))
    assert found["node"]["state"] == "note"
    assert "meshmoe join" in found["node"]["advice"]
    assert "torch" in found["software"]["text"]
    assert found["state"]["state"] in ("ok", "fail")


def test_what_a_mesh_lacks_is_said(served: Served, invoke: Callable[..., Result]) -> None:
    result = invoke("doctor", "--no-ports", "--json")
    found = findings(result)
    assert result.exit_code == 1
    assert found["experts"]["state"] == "fail"
    assert "2.00 MiB" in found["experts"]["advice"]
    assert found["b-with-a-longer-name"]["state"] == "note"
    assert "not answered" in found["b-with-a-longer-name"]["advice"]
    assert found["faults"]["text"] == "since the start: timeouts 2"


def test_version_skew_is_said(
    served: Served, service: ScriptedService, invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = service.status()

    def skewed() -> Any:
        me, peer = plain.peers
        other = msgspec.structs.replace(peer, state="alive", software="0.0.9")
        return msgspec.structs.replace(plain, peers=[me, other], faults={"other_version": 3})

    monkeypatch.setattr(service, "status", skewed)
    found = findings(invoke("doctor", "--no-ports", "--json"))
    assert "one version everywhere" in found["b-with-a-longer-name"]["advice"]
    assert "upgrade" in found["faults"]["advice"]


def test_for_people(served: Served, invoke: Callable[..., Result]) -> None:
    lines = invoke("doctor", "--no-ports").stdout.splitlines()
    assert any(line.startswith("FAIL  experts: 7 of 8") for line in lines)


def test_a_full_disk_and_a_wrong_clock(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(health, "DISK_BYTES_MIN", 1 << 60)
    monkeypatch.setattr(health.time, "gmtime", lambda: __import__("time").struct_time((1970, 1, 1, 0, 0, 5, 3, 1, 0)))
    found = findings(invoke("doctor", "--no-ports", "--json", "--socket", str(tmp_path / "none.sock")))
    assert "make room" in found["state"]["advice"]
    assert found["clock"]["state"] == "fail"


def test_ports_that_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert closed_ports(f"127.0.0.1:{port}") == []
    assert closed_ports(f"127.0.0.1:{port}") == [port]
