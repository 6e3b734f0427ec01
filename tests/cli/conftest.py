from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshmoe.cli.main import cli
from tests.api.scripted import ScriptedService
from tests.api.serving import Served


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def served(service: ScriptedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A node; the commands find it through the environment."""
    path = tmp_path / "m.sock"
    monkeypatch.setenv("MESHMOE_SOCKET", str(path))
    with Served(service, path) as running:
        yield running


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in this process."""
    monkeypatch.delenv("MESHMOE_DEBUG", raising=False)

    def run(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(cli, list(arguments), **options)

    return run


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Run a command in a process of its own."""
    environment = {**os.environ, "MESHMOE_DEBUG": "", **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "meshmoe.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=options.pop("stdin", subprocess.DEVNULL),
        env=environment,
        **options,
    )
