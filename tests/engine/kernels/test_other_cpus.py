"""Code compiled for another CPU, with vectors of another length, has the same bits."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import hashlib, torch
from meshmoe.engine.kernels.expert import compute_rows
generator, digest = torch.Generator().manual_seed(0), hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    gate_up = torch.randn(178, 100, generator=generator) / 10
    down = torch.randn(100, 89, generator=generator) / 9
    weights = {"gate_up_proj": gate_up.to(dtype), "down_proj": down.to(dtype)}
    x = torch.randn(7, 100, generator=generator).to(dtype)
    digest.update(compute_rows(weights, x).float().numpy().tobytes())
print(digest.hexdigest())
"""


def flags():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux" or not {"avx2", "fma", "f16c"} <= flags(),
    reason="needs a CPU that can run code made for Haswell",
)
def test_vectors_of_eight_and_the_machines_own(tmp_path):
    def bits(**other):
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **other}
        command = [sys.executable, "-c", SCRIPT]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert bits() == bits(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx2,+fma,+f16c")
    compiled = len(list(tmp_path.rglob("*.nbc")))
    assert compiled >= 6, "three dtypes, and none of them shared between the two CPUs"
