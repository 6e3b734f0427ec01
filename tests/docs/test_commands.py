"""Every command in the README and in docs/ is run against a real node, or, where it cannot be, checked.

A fenced block of ``sh`` or ``python`` is run as it stands, in a directory of its own, with a node of the bundled model
on the default socket. Not run but checked are

- lines of a command that lives until it is stopped (``meshmoe join``): its options are parsed as it does itself;
- blocks after a comment ``<!-- not run: WHY -->``: ``meshmoe`` lines are parsed, ``make`` targets must exist.

A reason is required, so that the exceptions can be read in the source of the pages.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from meshmoe.cli.main import cli
from tests.docs.running import RunningNode

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LIVES_ON = re.compile(r"^meshmoe join\b")
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n+)?^(?P<indent> *)```(?P<language>sh|python)\n(?P<body>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
BLOCK_S_MAX = 300


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    body: str
    why_not: str | None

    @property
    def commands(self) -> list[str]:
        """Its shell commands, continuation lines joined, comments and heredocs' bodies left out."""
        joined = self.body.replace("\\\n", " ")
        lines = [re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            body = "".join(line.removeprefix(match["indent"]) for line in match["body"].splitlines(keepends=True))
            line = text.count("\n", 0, match.start("language")) + 1
            yield Block(str(page.relative_to(ROOT)), line, match["language"], body, match["why"])


BLOCKS = list(blocks())


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("d")) as running:
        yield running


def check(command: str) -> None:
    """Parse a line as its program would."""
    words = shlex.split(re.sub(r"\$\([^)]*\)", "WORD", command))
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if words[:1] == ["make"]:
        targets = re.findall(r"^([.\w/-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        named = [word for word in words[1:] if "=" not in word]
        assert set(named) <= set(targets), f"no such target: {named}"
    if words[:1] == ["meshmoe"]:
        words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&", "&&", "2>&1")), None)]
        parse(cli, words)


def parse(command: click.Command, words: list[str]) -> None:
    context = command.make_context(words[0], words[1:])
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        _, inner, _ = command.resolve_command(context, rest)
        assert inner is not None
        parse(inner, rest)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.why_not is not None], ids=str)
def test_what_is_not_run_is_spelled_right(block: Block) -> None:
    assert len((block.why_not or "").split()) >= 3, "a reason, please"
    if block.language == "python":
        compile(block.body, str(block), "exec")
        return
    for command in block.commands:
        check(command)


@pytest.mark.mesh
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.why_not is None], ids=str)
def test_commands_work(block: Block, node: RunningNode, tmp_path: Path) -> None:
    if block.language == "python":
        program, script = [sys.executable, "-"], block.body
    else:
        living = [command for command in block.commands if LIVES_ON.match(command)]
        for command in living:
            check(command)
        rest = [command for command in block.commands if command not in living]
        if not rest:
            return
        program, script = ["bash", "-euo", "pipefail"], "\n".join(rest)
    done = subprocess.run(
        program,
        input=script,
        cwd=tmp_path,
        env=node.environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=BLOCK_S_MAX,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{script}\n{done.stdout}\n{done.stderr}"
    assert '"error"' not in done.stdout


def test_the_pages_have_commands() -> None:
    """The pattern finds what people see: as many fences as lines that open one."""
    opened = sum(
        len(re.findall(r"^ *```(?:sh|python)$", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in PAGES
    )
    assert len(BLOCKS) == opened > 10
