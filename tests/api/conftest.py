from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.scripted import ScriptedService
from tests.api.serving import Served


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def served(service: ScriptedService, tmp_path: Path) -> Iterator[Served]:
    with Served(service, tmp_path / "m.sock") as running:
        yield running
