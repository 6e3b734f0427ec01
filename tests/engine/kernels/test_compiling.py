"""Where compiled code is kept, and that a second start finds it there."""

import os
import subprocess
import sys
from pathlib import Path

from meshmoe.engine.kernels import compiling

SCRIPT = """
import numba, torch
from meshmoe.engine.kernels import expert
w = {"gate_up_proj": torch.ones(2, 16), "down_proj": torch.ones(16, 1)}
expert.compute_rows(w, torch.ones(1, 16))
print(sum(expert.expert_call.stats.cache_hits.values()))
print(numba.config.CACHE_DIR)
"""


def run(cache):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    hits, directory = done.stdout.splitlines()
    return int(hits), Path(directory)


def test_the_second_start_compiles_nothing(tmp_path):
    hits, directory = run(tmp_path)
    assert hits == 0
    assert directory.parent == tmp_path / "meshmoe" / "kernels"
    assert any(directory.rglob("*.nbc"))
    assert run(tmp_path) == (1, directory)


def test_another_version_has_another_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = compiling.cache_directory()
    monkeypatch.setattr(compiling.numba, "__version__", "0.0")
    assert compiling.cache_directory() != before


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "meshmoe").write_text("a file where a directory should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = compiling.cache_directory()
    assert directory.is_dir()
    assert tmp_path not in directory.parents
