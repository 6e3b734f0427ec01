"""The topology page in a real Chromium, against a service whose mesh does what a test wants."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from meshmoe.node.history import HistorySample
from meshmoe.node.status import AgreementStatus, ExchangeStatus, LinkStatus, NodeStatus, PlacementStatus
from tests.api.scripted import ScriptedService, tokenizer
from tests.api.serving import Served

Opened = Callable[..., Page]


_EXCHANGE = ExchangeStatus(
    at_s=0.0,
    partner="b",
    plan_version=4,
    adds=["0/1", "0/2"],
    drops=["1/1"],
    gained=1,
    given=0,
    gain_ms_per_token=1.2345,
    cost_bytes=3 << 20,
    cost_s=0.25,
)


class ThreeNodes(ScriptedService):
    """The scripted service with a third node, and states that a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.states = {"a": "alive", "b": "alive", "c": "alive"}
        self.samples = [
            HistorySample(at_s=1000.0 + 5 * i, tokens_per_s=10.0 + i % 7, hit_ratio=0.4 + i / 200, rounds_per_token=7.0)
            for i in range(100)
        ]

    def status(self) -> NodeStatus:
        status = super().status()
        me, other = status.peers
        third = super().status().peers[1]
        other.node, third.node = "b", "c"
        status.peers = [me, other, third]
        for peer in status.peers:
            peer.state = self.states[peer.node]
        status.links = [
            LinkStatus(nodes=pair, rtt_ms=5.25, rate_bytes_per_s=12.5e6)
            for pair in (("a", "b"), ("a", "c"), ("b", "c"))
        ]
        status.agreement = AgreementStatus(digest="ab", equal=False, differ=["c"])
        status.placement = PlacementStatus(
            rule="exchange", plan_version=4, quiet=True, settled=1, decision_ms_max=2.0, exchanges=[_EXCHANGE]
        )
        assert status.coverage is not None
        status.coverage.holders_by_layer = [[[0], [0, 1], [1], [2]], [[0], [0], [1, 2], []]]
        return status


@pytest.fixture
def service() -> ThreeNodes:
    tokenizer()  # importing transformers would else be a wait in the first chat
    return ThreeNodes()


@pytest.fixture
def url(service: ThreeNodes, tmp_path: Path) -> Iterator[str]:
    with Served(service, tmp_path / "m.sock", ("127.0.0.1", 0)) as served:
        assert served.addresses is not None
        assert served.addresses.http is not None
        yield f"http://127.0.0.1:{served.addresses.http[1]}/"


def test_shows_nodes_links_and_experts(url: str, opened: Opened) -> None:
    page = opened(url)
    expect(page.locator("#state")).to_have_text("serving, 3 of 3 nodes")
    expect(page.locator("#nodes tbody tr")).to_have_count(3)
    expect(page.locator("#graph")).to_have_attribute("aria-label", re.compile("3 nodes: a alive, b alive, c alive"))
    expect(page.locator("#graph canvas").first).to_be_visible()
    expect(page.locator("#nodes")).to_contain_text("500 Mbit/s")
    expect(page.locator("#legend")).to_contain_text("1 have no holder")
    expect(page.locator("#figure-p99")).to_have_text("9.5 ms")
    expect(page.locator("#figure-pass")).to_have_text("2.50")
    expect(page.locator("#figure-drafts")).to_have_text("40 % of 3.8 drafts right")
    expect(page.locator("#moving")).to_contain_text("expert 1/2 from b-with-a-longer-name, fetching")
    expect(page.locator("#moved")).to_contain_text("expert 1/1 kept, not given to b-with-a-longer-name: no room")
    expect(page.locator("#moved")).to_contain_text(
        "plan 4 with b: 2 experts more, 1 less here, saves 1.23 ms a token, 3 MiB"
    )
    expect(page.locator("#agreement")).to_have_text(
        "placed by use (plan 4, nothing left to gain); c last told of other holders"
    )
    expect(page.locator("#charts")).to_contain_text("up to 7.00")
    shown = page.evaluate("document.querySelector('.chart .line').getAttribute('d').length")
    assert shown > 500  # a hundred samples drawn


def test_a_node_that_dies_turns_and_one_that_comes_appears(url: str, opened: Opened, service: ThreeNodes) -> None:
    page = opened(url)
    expect(page.locator("#nodes tbody tr").nth(2)).to_contain_text("alive")
    service.states["c"] = "dead"
    expect(page.locator("#nodes tbody tr").nth(2)).to_contain_text("dead")
    expect(page.locator("#state")).to_have_text("serving, 2 of 3 nodes")
    expect(page.locator("#graph")).to_have_attribute("aria-label", re.compile("c dead"))
    service.states["c"] = "alive"
    expect(page.locator("#state")).to_have_text("serving, 3 of 3 nodes")


@pytest.mark.parametrize(("mode", "given"), [("continue", "Once upon a time"), ("chat", "What is a mesh?")])
def test_a_chat_streams(url: str, opened: Opened, service: ThreeNodes, mode: str, given: str) -> None:
    service.delay_s = 0.02
    page = opened(url)
    page.locator("#mode").select_option(mode)
    page.locator("#max-tokens").fill("40")
    page.locator("#prompt").fill(given)
    page.locator("#prompt").press("Enter")
    answer = page.locator(".message.theirs")
    expect(answer).to_contain_text("the mesh answers")
    assert page.locator(".after").text_content() == ""  # it comes while it is written
    expect(page.locator(".after")).to_contain_text("40 tokens")
    expect(page.locator(".after")).to_contain_text("2.00 rounds a token")
    expect(page.locator("#messages")).to_contain_text(given)


def test_a_chat_stops_and_errors_are_words(url: str, opened: Opened, service: ThreeNodes) -> None:
    service.delay_s = 0.02
    page = opened(url)
    page.locator("#send").click()
    expect(page.locator(".message.theirs")).to_contain_text("the mesh")
    page.locator("#stop").click()
    expect(page.locator(".after")).to_have_text("stopped")
    service.fail_after = (3, RuntimeError("it broke"))
    page.locator("#send").click()
    expect(page.locator(".after").nth(1)).to_contain_text("the node's log says more")


def test_text_is_not_markup(url: str, opened: Opened, service: ThreeNodes) -> None:
    page = opened(url)
    page.locator("#prompt").fill("<img src=x onerror=alert(1)>")
    page.locator("#send").click()
    expect(page.locator(".message.theirs .given")).to_have_text("<img src=x onerror=alert(1)>")
    assert page.locator("#messages img").count() == 0


def test_by_keyboard_alone(url: str, opened: Opened) -> None:
    page = opened(url)
    expect(page.locator("#nodes tbody tr")).to_have_count(3)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#prompt")).to_be_focused()
    page.locator("[data-node=b]").focus()
    page.keyboard.press("Enter")
    expect(page.locator("[data-node=b]")).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(1200)  # a status comes in between
    expect(page.locator("[data-node=b]")).to_be_focused()
    page.locator("#heat").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#heat-reading")).to_have_text("Layer 0, expert 1: a, b")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#heat-reading")).to_have_text("Layer 1, expert 3: nobody holds it")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_accessible(url: str, opened: Opened, scheme: str, width: int) -> None:
    page = opened(url, color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce")
    expect(page.locator("#nodes tbody tr")).to_have_count(3)
    page.locator("#send").click()
    expect(page.locator(".after")).not_to_be_empty()
    found: dict[str, Any] = Axe().run(page).response
    assert [(each["id"], each["nodes"][0]["target"]) for each in found["violations"]] == []
    assert len(found["passes"]) > 20
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_node_goes_and_comes_back(service: ThreeNodes, opened: Opened, tmp_path: Path) -> None:
    with Served(service, tmp_path / "m.sock", ("127.0.0.1", 0)) as served:
        assert served.addresses is not None
        assert served.addresses.http is not None
        port = served.addresses.http[1]
        page = opened(f"http://127.0.0.1:{port}/")
        expect(page.locator("#state")).to_have_text("serving, 3 of 3 nodes")
    expect(page.locator("#state")).to_have_text("the node does not answer")
    with Served(service, tmp_path / "m.sock", ("127.0.0.1", port)):
        expect(page.locator("#state")).to_have_text("serving, 3 of 3 nodes", timeout=20_000)
    opened.problems.clear()  # type: ignore[attr-defined]  # Chromium reports refused connections


def test_a_page_that_asks_for_its_key(service: ThreeNodes, opened: Opened, tmp_path: Path) -> None:
    key = "0123456789abcdef0123"
    with Served(service, tmp_path / "m.sock", ("127.0.0.1", 0), api_key=key) as served:
        assert served.addresses is not None
        assert served.addresses.http is not None
        page = opened(f"http://127.0.0.1:{served.addresses.http[1]}/")
        page.locator("#key").fill(key)
        page.locator("#key").press("Enter")
        expect(page.locator("#state")).to_have_text("serving, 3 of 3 nodes")
        expect(page.locator("#key-form")).to_be_hidden()
    opened.problems.clear()  # type: ignore[attr-defined]  # Chromium reports answers with status 401


def test_the_files_and_their_headers(url: str) -> None:
    index = httpx.get(url)
    assert "script-src 'self'" in index.headers["content-security-policy"]
    again = httpx.get(url, headers={"if-none-match": index.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(f"{url}page/vendor/cytoscape.LICENSE.txt").text.startswith(
        "Copyright (c) 2016-2026, The Cytoscape Consortium."
    )
    for path in ("page/", "page/../page.py", "page/%2e%2e/app.py", "page/none.js"):
        assert httpx.get(url + path).status_code == 404
    for file in (Path(__file__).parents[2] / "meshmoe/api/page_files").iterdir():
        if file.is_file():
            assert httpx.get(f"{url}page/{file.name}").content == file.read_bytes()
