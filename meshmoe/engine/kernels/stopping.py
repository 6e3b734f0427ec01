"""Whether a slice is over, asked in the middle of compiled code (see `meshmoe.engine.kernels.limit`)."""

from __future__ import annotations

from time import CLOCK_MONOTONIC

from numba import types

from meshmoe.engine.kernels import atomics
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.limit import CUT, SLICE_NS, TIME, UNTIL_NS, WATCHED
from meshmoe.engine.kernels.primitives import address_at

_poll = types.ExternalFunction("poll", types.int32(types.int64, types.int64, types.int32))
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
    now_ns = address_at(limit, TIME) * 1_000_000_000 + address_at(limit, TIME + 1)
    if now_ns < until_ns:
        return False
    if address_at(limit, WATCHED) == 0 or _poll(limit + 8 * WATCHED, 1, 0) != 0:
        return True
    atomics.put(limit, UNTIL_NS, now_ns + SLICE_NS)
    return False
