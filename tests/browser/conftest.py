from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium (.ci/run does where it can)")
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    # No sandbox: tests may run as root, and open nothing but this project's own page.
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page; at the end nothing may have gone wrong in it, and nothing been asked of another host."""
    pages: list[Page] = []
    problems: list[str] = []
    hosts: set[str] = set()

    def open_page(url: str, **options: Any) -> Page:
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 1000}, **options})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.goto(url)
        pages.append(page)
        hosts.discard(url.split("/")[2])
        return page

    open_page.problems = problems  # type: ignore[attr-defined]
    yield open_page
    for page in pages:
        page.close()
    assert not problems
    assert len(hosts) <= 1, hosts
