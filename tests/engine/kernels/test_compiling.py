"""Where compiled code is kept, and that a second start finds it there."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

from meshmoe.engine.kernels import compiling

SCRIPT = """
import sys
import numba, torch
from meshmoe.engine.kernels import expert
from meshmoe.engine.kernels.compiling import once_a_machine
w = {"gate_up_proj": torch.ones(2, 16), "down_proj": torch.ones(16, 1)}
print("here", flush=True)
sys.stdin.readline()
with once_a_machine("experts"):
    expert.compute_rows(w, torch.ones(1, 16))
print(sum(expert.expert_call.stats.cache_hits.values()))
print(numba.config.CACHE_DIR)
"""


def run(cache, processes):
    """Let so many compile at the same time; returns what each found on disk, and where that is."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("NUMBA_CACHE_DIR", None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    started = [subprocess.Popen([sys.executable, "-c", SCRIPT], **pipes) for _ in range(processes)]
    assert [process.stdout.readline() for process in started] == ["here\n"] * processes
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate() for process in started]
    assert not any(process.returncode for process in started)
    lines = [out.splitlines() for out, _ in ends]
    assert len({directory for _, directory in lines}) == 1
    return sorted(int(hits) for hits, _ in lines), Path(lines[0][1])


def test_one_of_several_compiles_and_the_second_start_compiles_nothing(tmp_path):
    hits, directory = run(tmp_path, 2)
    assert hits == [0, 1], "one has waited for the other"
    assert directory.parent == tmp_path / "meshmoe" / "kernels"
    assert any(directory.rglob("*.nbc"))
    assert run(tmp_path, 1) == ([1], directory)


def test_a_literal_argument_makes_no_version_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling.numba.config, "CACHE_DIR", str(tmp_path))

    @compiling.jit
    def callee(a, b):
        return a + b

    @compiling.jit
    def caller(a):
        begun = 0
        for i in range(a):
            begun = callee(begun, i) + callee(1, i)
        return begun

    assert caller(3) == 9
    assert [str(signature) for signature in callee.signatures] == ["(int64, int64)"]


def test_one_that_was_stopped_while_it_compiles_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling.numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "WAIT_S_MAX", 0.3)
    with (tmp_path / "lock").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        began_s = time.monotonic()
        with compiling.once_a_machine("it"):
            waited_s = time.monotonic() - began_s
    assert waited_s >= 0.3
    assert (tmp_path / "it.done").exists()


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
