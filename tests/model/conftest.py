from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from meshmoe.model.tiny import make_tiny_checkpoint

torch.set_num_threads(1)

Tiny = Callable[..., Path]


def pytest_collection_modifyitems(config, items):
    """Leave out what runs for minutes, unless it is asked for by its mark."""
    if "soak" not in config.getoption("-m"):
        for item in items:
            if "soak" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="runs with -m soak"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """Tiny checkpoints, each made once a session; leave them as they are."""
    made: dict[tuple, Path] = {}

    def make(family: str = "qwen3_moe", **options) -> Path:
        key = (family, *sorted(options.items(), key=str))
        if key not in made:
            made[key] = make_tiny_checkpoint(family, tmp_path_factory.mktemp(family) / family, **options)
        return made[key]

    return make


@pytest.fixture
def copied(tiny, tmp_path):
    """A copy of a tiny checkpoint that the test may damage."""

    def copy(family: str = "qwen3_moe", **options) -> Path:
        return Path(shutil.copytree(tiny(family, **options), tmp_path / "checkpoint"))

    return copy
