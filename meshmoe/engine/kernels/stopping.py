"""Whether a slice is over, asked in the middle of compiled code (see `meshmoe.engine.kernels.limit`)."""

from __future__ import annotations

from time import CLOCK_MONOTONIC

from numba import types

from meshmoe.engine.kernels import atomics
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.limit import CUT, TIME, UNTIL_NS
from meshmoe.engine.kernels.primitives import address_at

_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))


@jit
def due(limit: int) -> bool:
    """Whether the thread should look at what is more urgent; ``limit`` is a `SliceLimit.address`, or 0 for never."""
    if limit == 0:
        return False
    if atomics.load(limit, CUT) != 0:
        return True
    until_ns = address_at(limit, UNTIL_NS)
    if until_ns == 0:
        return False
    _clock_gettime(CLOCK_MONOTONIC, limit + 8 * TIME)
    return address_at(limit, TIME) * 1_000_000_000 + address_at(limit, TIME + 1) >= until_ns
