from __future__ import annotations

import io
import json
import time
from collections.abc import Callable

import msgspec
import pytest
from click.testing import Result
from rich.console import Console

from meshmoe.cli import status_view
from meshmoe.cli.status_tables import duration_words
from meshmoe.cli.status_view import show_status
from meshmoe.node.status import AgreementStatus, ExchangeStatus, NodeStatus, PlacementStatus, ServingStatus
from tests.api.scripted import ScriptedService
from tests.api.serving import Served

Invoke = Callable[..., Result]


def test_json_is_the_schema_as_it_is(served: Served, invoke: Invoke) -> None:
    result = invoke("status", "--json")
    assert result.exit_code == 0
    assert msgspec.json.decode(result.stdout, type=NodeStatus) == served.service.status()
    assert json.loads(result.stdout)["schema"] == 1


def test_in_a_pipe_everything_is_there(served: Served, invoke: Invoke) -> None:
    result = invoke("status")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    for words in (
        "edge-12m  qwen3_moe in bfloat16, 8 experts in 2 layers",
        "not covered  7 of 8 experts",
        "the mesh lacks 2.00 MiB of capacity",
        "layer 1 lacks 3",
        "5 experts in this node's custody, 1 on their way in, 2 migrations under way, 3 given and 4 taken",
        "lost: 1/3 (1 in all)",
        "a *",
        "b-with-a-longer-name",
        "suspect",
        "10.0.0.2:7337",
        "1.25 ms",
        "500 Mbit/s",
        "777",
        "expert 1/3",
        "50%",
        "faults  timeouts 2",
        "2.50 tokens a pass (40% of 3.8 drafts right), ",
        "first token 12.5 ms (p99 250 ms), each next 3.25 ms (p99 9.5 ms)",
        "expert 1/2",
        "from b-with-a-longer-name",
        "fetching",
        "25%",
        "to b-with-a-longer-name",
        "1 min 15 s ago",
        "expert 0/3 given to b-with-a-longer-name",
        "expert 1/1 kept, not given to b-with-a-longer-name",
        "no room",
        "join from another box:  meshmoe join --peer 10.0.0.1:7337",
    ):
        assert words in result.stdout, words
    assert "retries" not in result.stdout


def test_why_experts_move(monkeypatch: pytest.MonkeyPatch) -> None:
    status = ScriptedService().status()
    status.secured = False
    status.agreement = AgreementStatus(digest="ab", equal=True, differ=[])
    exchange = ExchangeStatus(
        at_s=time.time() - 75.2,
        partner="b",
        plan_version=7,
        adds=["0/1", "0/2"],
        drops=["1/1"],
        gained=1,
        given=0,
        gain_ms_per_token=1.2345,
        cost_bytes=3 << 20,
        cost_s=0.25,
    )
    status.placement = PlacementStatus(
        rule="exchange", plan_version=7, quiet=True, settled=2, decision_ms_max=4.0, exchanges=[exchange]
    )
    text = shown(monkeypatch, status, 120)
    assert "agreed   all present nodes see the same holders" in text
    assert "placed   by use, plan 7, nothing left to gain, settled 2 times" in text
    line = (
        "1 min 15 s ago  plan 7 with b: 2 experts more, 1 less here, saves 1.23 ms a token, 3.00 MiB to move (250 ms)"
    )
    assert line in text
    assert "not encrypted" in text
    status.agreement = AgreementStatus(digest="ab", equal=False, differ=["b", "c"])
    status.placement.rule = "guardian"
    text = shown(monkeypatch, status, 120)
    assert "not agreed  b, c last told of other holders" in text
    assert "by the guardian rule" in text


def shown(monkeypatch: pytest.MonkeyPatch, status: NodeStatus, width: int) -> str:
    """What a terminal of that width shows."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system=None, highlight=False)
    monkeypatch.setattr(status_view, "Console", lambda **_options: console)
    show_status(status)
    return out.getvalue()


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 45])
def test_narrow_terminals_get_fewer_columns(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    text = shown(monkeypatch, ScriptedService().status(), width)
    (header,) = [line for line in text.splitlines() if "used" in line and "state" in line]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert ("software" in header) == (width >= 150)
    assert "used" in header
    assert "…" not in text


def test_a_node_that_has_just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    status = ScriptedService().status()
    status.model = status.coverage = None
    status.peers, status.transfers, status.faults = [], [], {}
    status.serving = ServingStatus(ready=False, reason="fetching the trunk")
    text = shown(monkeypatch, status, 80)
    assert "model not known yet" in text
    assert "not serving  fetching the trunk" in text


def test_names_are_not_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    status = ScriptedService().status()
    assert status.model is not None
    status.model.name = "[red]x[/red]"
    assert "[red]x[/red]" in shown(monkeypatch, status, 100)


def test_ranges() -> None:
    assert status_view._ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"


@pytest.mark.parametrize(
    ("uptime_s", "text"),
    [(8.9, "8 s"), (65, "1 min 5 s"), (3 * 3600 + 125, "3 h 2 min"), (50 * 3600.0, "2 d 2 h")],
)
def test_uptime(uptime_s: float, text: str) -> None:
    assert duration_words(uptime_s) == text
