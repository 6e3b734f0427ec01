"""The pages hang together: generated ones are current, links lead somewhere, the site builds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.message_page import PAGE, page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_message_reference_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.docs.message_page`"


@pytest.mark.parametrize("source", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(source: Path) -> None:
    text = re.sub(r"```.*?```", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (source.parent / path).resolve() if path else source
        assert file.exists(), f"{target} leads nowhere"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {anchor_of(heading) for heading in headings}, f"{target}: no such heading"


def anchor_of(heading: str) -> str:
    """As GitHub and MkDocs make it."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the docs extra is not installed")
def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("index.html", "comparison/index.html", "reference/index.html", "messages/index.html"):
        built = (tmp_path / "site" / name).read_text(encoding="utf-8")
        # Fonts and scripts of elsewhere would tell it who reads the page.
        assert not re.findall(r'(?:src|href)="https?://(?:fonts|cdn|unpkg)[^"]*"', built)
    assert "connect_async" in (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
