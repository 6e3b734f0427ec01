"""The page of a real node: three processes, one of which dies while somebody watches and chats."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from playwright.sync_api import Page, expect

from meshmoe.cli.local_mesh import LocalMesh, open_local_mesh
from meshmoe.core.ids import NodeId

pytestmark = pytest.mark.mesh

NAMES = ("attic", "desk", "shop")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[LocalMesh]:
    """Three serving nodes, each with a page."""
    started, stop, running = threading.Event(), trio.Event(), dict[str, Any]()

    async def main() -> None:
        running["token"] = trio.lowlevel.current_trio_token()
        async with open_local_mesh(tmp_path) as nodes:
            for name in NAMES:
                nodes.add(name, "--capacity", "70%", "--threads", "1", "--http", "127.0.0.1:0")
            nodes.nodes[NodeId("attic")].start()
            address = await nodes.join_word("attic")
            for name in NAMES[1:]:
                nodes.nodes[NodeId(name)].start("--peer", address)
            await nodes.wait_serving(*NAMES)
            running["mesh"] = nodes
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            running["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(240)
    if "error" in running:
        raise running["error"]
    yield running["mesh"]
    running["token"].run_sync_soon(stop.set)
    thread.join(30)


def test_a_real_mesh_loses_a_node(mesh: LocalMesh, opened: Callable[..., Page]) -> None:
    url = re.search(r"page: (http\S+)", mesh.nodes[NodeId("attic")].log_path.read_text())
    assert url is not None
    page = opened(url[1])
    expect(page.locator("#state")).to_have_text("serving, 3 of 3 nodes", timeout=15_000)
    expect(page.locator("#legend")).to_contain_text("shop")
    page.locator("#max-tokens").fill("48")
    page.locator("#send").click()
    expect(page.locator(".after").first).to_contain_text("48 tokens", timeout=30_000)
    mesh.nodes[NodeId("shop")].send_signal(signal.SIGKILL)
    row = page.locator("#nodes tbody tr", has=page.locator("[data-node=shop]"))
    expect(row).to_contain_text("dead", timeout=30_000)
    expect(page.locator("#graph")).to_have_attribute("aria-label", re.compile("shop dead"))
    # The two that are left hold every expert, or soon do.
    expect(page.locator("#state")).to_have_text("serving, 2 of 3 nodes", timeout=60_000)
    page.locator("#send").click()
    expect(page.locator(".after").nth(1)).to_contain_text("48 tokens", timeout=60_000)
    texts = page.locator(".message.theirs span:nth-child(2)").all_text_contents()
    assert texts[0] == texts[1]
