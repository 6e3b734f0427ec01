"""Run as a program: load the trunk and a third of a checkpoint's experts, and print what that did to this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert, load_trunk


def rss_bytes(field: str = "VmRSS") -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def main(tiny: Path, large: Path) -> None:
    torch.set_num_threads(1)
    warm = Checkpoint.open(tiny)
    load_trunk(warm)
    load_expert(warm, next(warm.experts()))
    baseline = rss_bytes()
    checkpoint = Checkpoint.open(large)
    model = load_trunk(checkpoint)
    with_trunk = rss_bytes()
    chosen = list(checkpoint.experts())[::3]
    experts = [load_expert(checkpoint, expert) for expert in chosen]
    with_experts = rss_bytes()
    peak = rss_bytes("VmHWM")
    checkpoint.manifest()
    hashed = rss_bytes()
    del experts
    seen = {
        "baseline": baseline,
        "with_trunk": with_trunk,
        "with_experts": with_experts,
        "peak": peak,
        "hashed": hashed,
        "dropped": rss_bytes(),
        "trunk_bytes": sum(p.nbytes for p in model.parameters()),
        "expert_bytes": sum(checkpoint.expert_bytes(expert) for expert in chosen),
    }
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
