"""Whether numbers are numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.primitives import TAGS, Tag, read


@jit
def finite(tag: Tag, x: int, count: int) -> bool:
    """Whether ``count`` numbers at ``x`` are all numbers, and none infinite."""
    bad = 0
    for i in range(count):
        number = read(tag, x, i)
        bad += number - number != 0
    return bad == 0


def all_finite(values: Tensor) -> bool:
    """Whether all of a contiguous tensor's values are finite."""
    tag = TAGS.get(values.dtype)
    if tag is None or values.device.type != "cpu":
        return bool(torch.isfinite(values).all())
    return finite(tag, values.data_ptr(), values.numel())
