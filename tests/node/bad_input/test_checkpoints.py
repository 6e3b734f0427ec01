"""Checkpoints that are missing, damaged or of another kind, and capacities that hold nothing of one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.node.bad_input.support import Fails, Models


def test_no_such_checkpoint(fails: Fails, tmp_path: Path) -> None:
    line = fails("--model", tmp_path / "nowhere", code=3)
    assert line == f"{tmp_path}/nowhere is not a directory: give the directory of a Hugging Face checkpoint"


def test_no_config(fails: Fails, damaged: Path) -> None:
    (damaged / "config.json").unlink()
    assert fails("--model", damaged, code=3).startswith(f"{damaged} has no config.json: ")


def test_truncated_weights(fails: Fails, damaged: Path) -> None:
    path = damaged / "model.safetensors"
    whole_bytes = path.stat().st_size
    os.truncate(path, whole_bytes // 2)
    line = fails("--model", damaged, code=3)
    assert f"model.safetensors is truncated: {whole_bytes // 2} of {whole_bytes} bytes" in line


def test_not_a_mixture_of_experts(fails: Fails, models: Models) -> None:
    line = fails("--model", models.dense, code=3)
    assert str(models.dense) in line
    assert "Mixture" in line or "MoE" in line


def test_capacity_too_small_for_one_expert(fails: Fails, models: Models) -> None:
    line = fails("--model", models.good, "--capacity", "1KiB", code=4)
    assert re.fullmatch(
        r"capacity 1\S* KiB is too small for one expert of this model \(\S+ KiB\): give more with --capacity", line
    )


def test_no_capacity_at_all(fails: Fails, models: Models) -> None:
    assert "is too small for one expert" in fails("--model", models.good, "--capacity", "0%", code=4)
