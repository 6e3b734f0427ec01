from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, cast

import msgspec
import pytest
from click.testing import Result

from meshmoe.cli.client import NodeClient
from meshmoe.cli.status_watch import watched
from meshmoe.core.errors import MeshmoeError
from meshmoe.node.status import NodeStatus
from tests.api.serving import Served
from tests.cli.conftest import start

Invoke = Callable[..., Result]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshmoe.api.status_feed.INTERVAL_S", 0.05)
    monkeypatch.setattr("meshmoe.api.status_feed.SHARED_S", 0.01)


def test_watching_sees_what_changes(served: Served) -> None:
    statuses = watched(NodeClient(served.path))
    assert next(statuses).faults["timeouts"] == 2
    served.service.faults["timeouts"] = 3
    for _ in range(40):
        if next(statuses).faults["timeouts"] == 3:
            break
    else:
        raise AssertionError("the change was not told")
    statuses.close()  # type: ignore[attr-defined]


def test_a_line_a_second_in_a_pipe(served: Served) -> None:
    process = start("status", "--watch")
    assert process.stdout is not None
    lines = [process.stdout.readline().decode() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    for line in lines:
        assert "1 of 2 nodes  serving  0 active  0.0 tok/s  token p99 9.5 ms  2 moving" in line


def test_json_lines(served: Served) -> None:
    process = start("status", "--watch", "--json")
    stdout = cast("IO[bytes]", process.stdout)
    first, second = (json.loads(stdout.readline()) for _ in range(2))
    process.kill()
    process.wait()
    stdout.close()
    assert msgspec.convert(first, NodeStatus).node == msgspec.convert(second, NodeStatus).node == "a"


def test_on_a_terminal_in_place(served: Served) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "50"}
    process = subprocess.Popen(
        [sys.executable, "-m", "meshmoe.cli.main", "status", "--watch"], stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    seen = _read_until(master, b"join from another box")
    process.send_signal(signal.SIGINT)
    seen += _read_until(master, b"\x1b[?1049l")
    assert process.wait(60) == 130
    os.close(master)
    assert b"\x1b[?1049h" in seen
    assert b"not covered" in seen


def _read_until(descriptor: int, words: bytes, timeout_s: float = 60.0) -> bytes:
    seen = b""
    deadline_s = time.monotonic() + timeout_s
    while words not in seen:
        assert time.monotonic() < deadline_s, seen
        if select.select([descriptor], [], [], 0.2)[0]:
            seen += os.read(descriptor, 65536)
    return seen


def test_the_node_goes(served: Served) -> None:
    statuses = watched(NodeClient(served.path))
    next(statuses)
    served.stop()
    with pytest.raises(MeshmoeError, match="has stopped"):
        for _ in statuses:
            pass
