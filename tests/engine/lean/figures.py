"""How far the lean path and the generic one agree in narrow dtypes, and how far each agrees with float32.

Usage: python -m tests.engine.lean.figures [TOKENS] [CHECKPOINT...]. Both read the same text token by token; what is
counted is how often they would write the same token next. Reads two pages of this repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.dispatch import RequestDispatch, current_runner
from meshmoe.engine.kernels.limit import SliceLimit
from meshmoe.engine.lean.batch import LeanEngine
from meshmoe.engine.lean.row import Row
from meshmoe.engine.model import load_moe_model
from meshmoe.engine.request import GenerationStats
from meshmoe.model.checkpoint import Checkpoint
from tests.engine.support import EDGE_12M, pool_of

ROOT = Path(__file__).parents[3]
READ_FIRST = 8
"""Tokens that are read as a prompt."""


class NoJob:
    limit = SliceLimit()

    def checkpoint(self):
        pass


def text() -> str:
    return (ROOT / "docs" / "concepts.md").read_text() + (ROOT / "meshmoe" / "engine" / "compute.py").read_text()


def next_tokens(directory: Path, dtype: torch.dtype, count: int) -> tuple[list[int], list[int]]:
    """What either path would write after each token of the text: generic, lean."""
    checkpoint = Checkpoint.open(directory)
    model = load_moe_model(checkpoint, dtype, decode="lean")
    sizes = [layer.n_experts for layer in model.layers]
    pool = pool_of(checkpoint, model, model.experts)
    dispatch = RequestDispatch(NoJob(), pool, None, GenerationStats(), ActivationCounts.zeros(sizes), decode=True)
    current_runner.set(dispatch)
    lean = LeanEngine(model.lean, pool, sizes, None, ActivationCounts.zeros(sizes), 256 << 20)
    sequence, batch, stats = lean.sequence(), lean.batch(NoJob()), GenerationStats()
    ids = model.tokenizer(text()).input_ids[:count]
    _, cache = model.forward(ids[:READ_FIRST], 0, model.new_cache())
    batch.forward([Row(sequence, token, stats) for token in ids[:READ_FIRST]])
    found: tuple[list[int], list[int]] = ([], [])
    for position in range(READ_FIRST, len(ids)):
        logits, cache = model.forward([ids[position]], position, cache)
        found[0].append(int(logits.argmax()))
        found[1].append(int(batch.forward([Row(sequence, ids[position], stats)]).argmax()))
    return found


def same(one: list[int], other: list[int]) -> str:
    agree = sum(a == b for a, b in zip(one, other, strict=True))
    return f"{agree} of {len(one)} ({100 * agree / len(one):.2f} %)"


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print("| model | dtype | lean and generic | generic and float32 | lean and float32 |\n|---|---|---|---|---|")
    for directory in [Path(name) for name in sys.argv[2:]] or [EDGE_12M]:
        exact, lean_exact = next_tokens(directory, torch.float32, count)
        print(f"| {directory.name} | float32 | {same(exact, lean_exact)} | | |")
        for dtype in (torch.bfloat16, torch.float16):
            generic, lean = next_tokens(directory, dtype, count)
            name = str(dtype).removeprefix("torch.")
            print(
                f"| {directory.name} | {name} | {same(generic, lean)} | {same(generic, exact)} | {same(lean, exact)} |"
            )


if __name__ == "__main__":
    main()
