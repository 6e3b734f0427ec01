"""One expert on any number of rows: gate and up projection, SiLU, down projection, as one compiled call.

Values are rounded to the model's dtype where stock eager rounds them: after each projection, after the activation and
after the product. A row's bits do not depend on how many rows are computed with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from meshmoe.engine.kernels.arithmetic import gate
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.crew import desk_here, linear
from meshmoe.engine.kernels.primitives import F32_TAG, TAGS, Tag, int64, read, size_of, write
from meshmoe.model.experts_modules import ExpertWeights


@jit
def expert_rows(
    tag: Tag, desk: int, gate_up: int, down: int, x: int, y: int, scratch: int, rows: int, hidden: int, width: int
) -> None:
    """Compute an expert.

    Args:
        tag: Dtype of the weights.
        desk: Of the crew that computes it, or 0 (see `crew.linear`).
        gate_up: ``[2 * width, hidden]`` weights.
        down: ``[hidden, width]`` weights.
        x: ``[rows, hidden]`` in the same dtype.
        y: ``[rows, hidden]`` float32, rounded to the dtype of the weights.
        scratch: Room for ``rows * 3 * width`` float32.
        rows: At least 1.
        hidden: Width of the hidden state.
        width: Width between up and down projection.
    """
    both, gated = scratch, scratch + 8 * rows * width
    linear(tag, desk, gate_up, int64(0), x, both, rows, 2 * width, hidden)
    for r in range(rows):
        at = both + 8 * r * width
        gate(tag, at, at + 4 * width, gated + size_of(tag) * r * width, width)
    linear(tag, desk, down, int64(0), gated, y, rows, hidden, width)


@jit
def expert_call(
    tag: Tag, desk: int, gate_up: int, down: int, x: int, y: int, scratch: int, rows: int, hidden: int, width: int
) -> None:
    """As `expert_rows`, with ``y`` in the dtype of the weights; scratch has ``rows * hidden`` more."""
    count = rows * hidden
    expert_rows(tag, desk, gate_up, down, x, scratch, scratch + 4 * count, rows, hidden, width)
    for i in range(count):
        write(tag, y, i, read(F32_TAG, scratch, i))


def compute_rows(weights: ExpertWeights, x: Tensor) -> Tensor:
    """Compute an expert.

    Args:
        weights: ``gate_up_proj`` ``[2 * I, H]`` and ``down_proj`` ``[H, I]``, contiguous.
        x: ``[n, H]`` in the dtype of the weights, contiguous.

    Returns:
        ``[n, H]`` in the same dtype.
    """
    return compute_together([weights], [range(len(x))], x)


def compute_together(held: Sequence[ExpertWeights], rows: Sequence[Sequence[int]], hidden: Tensor) -> Tensor:
    """Compute several experts, each on its rows.

    Args:
        held: As `compute_rows` takes them.
        rows: For each of them, the rows of ``hidden`` that it computes.
        hidden: ``[U, H]`` in the dtype of the weights, contiguous.

    Returns:
        ``[sum of rows, H]``, the outputs one after the other.
    """
    count, size = hidden.shape
    width = held[0]["down_proj"].shape[1]
    out = hidden.new_empty(sum(map(len, rows)), size)
    scratch = np.empty(max(map(len, rows)) * (size + 3 * width), np.float32)
    tag, desk, everything, at = TAGS[hidden.dtype], desk_here(), list(range(count)), out.data_ptr()
    for weights, numbers in zip(held, rows, strict=True):
        x = hidden if list(numbers) == everything else hidden.index_select(0, torch.tensor(numbers))
        gate_up, down = weights["gate_up_proj"].data_ptr(), weights["down_proj"].data_ptr()
        expert_call(tag, desk, gate_up, down, x.data_ptr(), at, scratch.ctypes.data, len(numbers), size, width)
        at += len(numbers) * size * out.element_size()
    return out
