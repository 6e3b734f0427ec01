"""Code compiled for another CPU, with vectors of another length, has the same bits."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from meshmoe.engine.kernels.compiling import cache_directory

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
        command = [sys.executable, "-c", SCRIPT]
        return subprocess.run(command, env=os.environ | other, capture_output=True, text=True, check=True).stdout

    own, ours = bits(), cache_directory()  # with code that other tests have compiled already
    known = tmp_path / "meshmoe" / "kernels" / ours.name
    for file in ours.rglob("expert.expert_call-*.nb?"):
        (known / file.relative_to(ours)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, known / file.relative_to(ours))
    before = set(known.rglob("*.nbc"))
    assert len(before) >= 3, "three dtypes"
    assert own == bits(XDG_CACHE_HOME=str(tmp_path), NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx2,+fma,+f16c")
    compiled = {file for file in known.rglob("expert.expert_call-*.nbc") if file not in before}
    assert len(compiled) >= 3, "three dtypes, and none of them shared between the two CPUs"
