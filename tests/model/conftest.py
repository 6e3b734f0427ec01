from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from meshmoe.model.tiny import make_tiny_checkpoint

torch.set_num_threads(1)

Tiny = Callable[..., Path]


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
    import shutil

    def copy(family: str = "qwen3_moe", **options) -> Path:
        return Path(shutil.copytree(tiny(family, **options), tmp_path / "checkpoint"))

    return copy
