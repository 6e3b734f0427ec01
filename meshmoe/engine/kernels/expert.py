"""One expert on any number of rows: gate and up projection, SiLU, down projection, as one compiled call.

Values are rounded to the model's dtype where stock eager rounds them: after each projection, after the activation and
after the product. A row's bits do not depend on how many rows are computed with it.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from meshmoe.engine.kernels.arithmetic import gate
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.crew import desk_here, linear
from meshmoe.engine.kernels.primitives import F32_TAG, TAGS, Tag, read, size_of, write
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
    linear(tag, desk, gate_up, 0, x, both, rows, 2 * width, hidden)
    for r in range(rows):
        at = both + 8 * r * width
        gate(tag, at, at + 4 * width, gated + size_of(tag) * r * width, width)
    linear(tag, desk, down, 0, gated, y, rows, hidden, width)


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
    gate_up, down = weights["gate_up_proj"], weights["down_proj"]
    rows, hidden = x.shape
    width = down.shape[1]
    out = x.new_empty(rows, hidden)
    scratch = np.empty(rows * (hidden + 3 * width), np.float32)
    expert_call(
        TAGS[x.dtype],
        desk_here(),
        gate_up.data_ptr(),
        down.data_ptr(),
        x.data_ptr(),
        out.data_ptr(),
        scratch.ctypes.data,
        rows,
        hidden,
        width,
    )
    return out
