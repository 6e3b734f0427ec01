"""Experts' kernels, in bytes of weights a second beside the read bandwidth of the same minute."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import msgspec
import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from meshmoe.bench_engine.bandwidth import readers
from meshmoe.bench_engine.turns import Progress, in_turns
from meshmoe.engine.kernels.primitives import TAGS
from meshmoe.engine.lean.step import compute_resident
from meshmoe.engine.lean.tables import Layer, Place, Shape
from meshmoe.model.experts_modules import ExpertWeights
from meshmoe.model.tensors import DTYPE_CODES, TensorSpec, aligned_views

SHAPES = ((256, 48), (1024, 512), (2048, 768))
"""Hidden width and expert width: edge-12m, bench-1.7b, Qwen3-30B-A3B."""

ROWS = (1, 2, 4, 8, 32)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

TOGETHER = 8
"""Experts that the compiled kernel computes in one call."""


class KernelFigure(msgspec.Struct, frozen=True):
    """What one kernel reached.

    Attributes:
        hidden: Width of the hidden state.
        width: Of the expert.
        dtype: Of the weights.
        rows: Computed at once.
        compiled: Bytes of weights a second, by the compiled kernel, `TOGETHER` experts a call as a layer of a step
            calls them.
        torch: The same, by ``F.linear`` twice with SiLU between.
        read: Read bandwidth in the same turns, bytes a second.
    """

    hidden: int
    width: int
    dtype: str
    rows: int
    compiled: float
    torch: float
    read: float


def measure_kernels(
    turns: int, pool_bytes: int, shapes: tuple[tuple[int, int], ...], progress: Progress
) -> list[KernelFigure]:
    """Measure experts of several shapes, dtypes and rows.

    Args:
        turns: Of which the median is taken.
        pool_bytes: Weights that are gone through, so that they come from memory and not from a cache.
        shapes: Hidden width and expert width.
        progress: Told what is being measured.
    """
    read = readers()
    figures = []
    for hidden, width in shapes:
        for dtype in DTYPES:
            pool = _pool(hidden, width, dtype, pool_bytes)
            for rows in ROWS if dtype is torch.bfloat16 else (1,):
                progress(f"{hidden} x {width}, {dtype}, {rows} rows")
                x = torch.randn(rows, hidden).to(dtype)
                found = in_turns({"torch": _torch(pool, x), **read, "compiled": _compiled(pool, x)}, turns)
                best = max(found[name] for name in read)
                name = str(dtype).removeprefix("torch.")
                figures.append(KernelFigure(hidden, width, name, rows, found["compiled"], found["torch"], best))
    return figures


def kernel_table(figures: list[KernelFigure]) -> str:
    """The figures as a Markdown table, in GB/s."""
    lines = [
        "| expert | dtype | rows | compiled | torch | read | compiled / torch | compiled / read |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for f in figures:
        head = f"| {f.hidden} x {f.width} | {f.dtype} | {f.rows} "
        ratios = f"{f.compiled / f.torch:.2f} | {f.compiled / f.read:.2f}"
        lines.append(f"{head}| {f.compiled / 1e9:.1f} | {f.torch / 1e9:.1f} | {f.read / 1e9:.1f} | {ratios} |")
    return "\n".join(lines)


def _pool(hidden: int, width: int, dtype: torch.dtype, pool_bytes: int) -> list[ExpertWeights]:
    size = 3 * hidden * width * dtype.itemsize
    code, pool = DTYPE_CODES[dtype], []
    for _ in range(max(1, pool_bytes // size // TOGETHER) * TOGETHER):
        # In memory as the product has it.
        gate_up, down = aligned_views([TensorSpec(code, (2 * width, hidden)), TensorSpec(code, (hidden, width))])
        pool.append({"gate_up_proj": gate_up.normal_(std=hidden**-0.5), "down_proj": down.normal_(std=width**-0.5)})
    return pool


def _compiled(pool: list[ExpertWeights], x: Tensor) -> Callable[[], float]:
    """The compiled step's part that computes a layer's experts; every one of them gets all rows."""
    rows, hidden = x.shape
    width = pool[0]["down_proj"].shape[1]
    addresses = np.array([[w["gate_up_proj"].data_ptr(), w["down_proj"].data_ptr()] for w in pool], np.int64)
    chosen, tag = np.tile(np.arange(TOGETHER), (rows, 1)), TAGS[x.dtype]
    sorting = np.zeros(TOGETHER + 1 + rows * TOGETHER, np.int64)
    shape, layer, places = (np.zeros(len(table), np.int64) for table in (Shape, Layer, Place))
    shape[Shape.HIDDEN], layer[Layer.WIDTH] = hidden, width
    layer[Layer.EXPERTS] = layer[Layer.TOP_K] = TOGETHER
    memory = {
        Place.NORMED: x,
        Place.OUTPUTS: torch.zeros(rows, TOGETHER, hidden),
        Place.INNER: torch.zeros(rows, 3 * width),
        Place.GATHERED: torch.zeros_like(x),
        Place.COMPUTED: torch.zeros(rows, hidden),
    }
    for place, tensor in memory.items():
        places[place] = tensor.data_ptr()
    groups = [addresses[begin : begin + TOGETHER] for begin in range(0, len(pool), TOGETHER)]

    def measure() -> float:
        assert memory  # must outlive every call
        began = perf_counter()
        for experts in groups:
            compute_resident(tag, shape, layer, places, experts, chosen, sorting, rows, 0, 0)
        return _size(pool) / (perf_counter() - began)

    return measure


def _torch(pool: list[ExpertWeights], x: Tensor) -> Callable[[], float]:
    def measure() -> float:
        began = perf_counter()
        for weights in pool:
            gate, up = functional.linear(x, weights["gate_up_proj"]).chunk(2, dim=-1)
            functional.linear(functional.silu(gate) * up, weights["down_proj"])
        return _size(pool) / (perf_counter() - began)

    return measure


def _size(pool: list[ExpertWeights]) -> int:
    return len(pool) * sum(tensor.nbytes for tensor in pool[0].values())
