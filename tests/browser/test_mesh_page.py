"""The page of a real node: three processes, one of which dies while somebody watches and chats.

With MESHMOE_SCREENSHOTS=DIR it leaves the pictures of docs/images there: the page in light and dark, and what
`meshmoe status` prints on a terminal.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect
from rich.console import Console
from rich.text import Text

from meshmoe.cli.local_mesh import LocalMesh, open_local_mesh
from meshmoe.core.ids import NodeId

pytestmark = [pytest.mark.mesh, pytest.mark.soak]

NAMES = ("attic", "desk", "shop")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[LocalMesh]:
    """Three serving nodes, each with a page."""
    started, stop, running = threading.Event(), trio.Event(), dict[str, Any]()

    async def main() -> None:
        running["token"] = trio.lowlevel.current_trio_token()
        async with open_local_mesh(tmp_path) as nodes:
            for name in NAMES:
                nodes.add(
                    name, "--capacity", "70%", "--links", "three-rooms", "--threads", "1", "--http", "127.0.0.1:0"
                )
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
    # Each figure over time has had a sample with a finished request in it.
    expect(page.locator("#charts")).not_to_contain_text("no request has finished yet", timeout=15_000)
    _assert_accessible(page)
    _picture(page, "page-light.png")
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
    page.emulate_media(color_scheme="dark")
    _assert_accessible(page)
    _picture(page, "page-dark.png")
    status = _status_on_a_terminal(mesh)
    assert "attic" in status.plain
    assert "dead" in status.plain
    page.goto("about:blank")
    page.set_viewport_size({"width": 1010, "height": 200})
    page.set_content(_as_page(status))
    _picture(page, "status.png")


def _assert_accessible(page: Page) -> None:
    found: dict[str, Any] = Axe().run(page).response
    assert [(each["id"], each["nodes"][0]["target"]) for each in found["violations"]] == []
    assert len(found["passes"]) > 20


def _status_on_a_terminal(mesh: LocalMesh) -> Text:
    """What ``meshmoe status`` of the first node prints, with its colours."""
    command = [
        sys.executable,
        "-m",
        "meshmoe.cli.main",
        "status",
        "--socket",
        str(mesh.nodes[NodeId("attic")].socket_path),
    ]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "110"}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    # The last lines are the join command: a token does not belong in a picture.
    return Text.from_ansi(printed.stdout.partition("join from another box")[0].rstrip())


def _as_page(text: Text) -> str:
    console = Console(record=True, width=112, file=io.StringIO())
    console.print(text)
    form = "<style>{stylesheet} body {{ margin: 16px; color: {foreground}; background: {background}; }}</style>"
    style = "font: 14px/1.3 'DejaVu Sans Mono', monospace"
    return console.export_html(code_format=f'{form}<pre style="{style}">{{code}}</pre>')


def _picture(page: Page, name: str) -> None:
    """Leave a picture of the page, in 128 colours: small enough to be kept with the source."""
    directory = os.environ.get("MESHMOE_SCREENSHOTS")
    if directory is not None:
        page.wait_for_timeout(1500)  # for the next status
        taken = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        taken.convert("RGB").quantize(128).save(Path(directory) / name, optimize=True)
