"""Weights of one row of activations, read in several places at once.

Some processors get more from memory by a few streams far from each other than by one, whatever that one is asked for
ahead: on the Intel Xeon that docs/decisions/kernels.md names 13.3 GB/s in place of 12.5. Each sum is the one of `dots`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from meshmoe.engine.kernels.dots import COLUMN, LANES, emit_vectors, halved_sums
from meshmoe.engine.kernels.primitives import F32, I32, Tag, constant, pointer_to, stored

STREAMS = 4
ROWS_EACH = COLUMN // STREAMS
"""Rows of weights of a stream that one call takes."""

_AHEAD_BYTES = 2048


def _apart(_context: Any, tag: Any, w: Any, x: Any, y: Any, apart: Any, n: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _tag, w, x, y, apart, n = arguments
        activations, out = [pointer_to(builder, tag, x)], pointer_to(builder, types.float32, y)
        row_bytes = builder.mul(n, constant(stored(tag)[1]))
        stream_bytes = builder.mul(row_bytes, apart)
        kept = cgutils.alloca_once(builder, ir.VectorType(F32, LANES), COLUMN)
        with cgutils.for_range(builder, constant(ROWS_EACH)) as loop:
            first = builder.add(w, builder.mul(row_bytes, loop.index))
            rows = [builder.add(first, builder.mul(stream_bytes, constant(stream))) for stream in range(STREAMS)]
            weights = [pointer_to(builder, tag, row) for row in rows]
            added, _ = emit_vectors(builder, tag, weights, activations, n, _AHEAD_BYTES)
            for stream, vector in enumerate(added):
                at = builder.add(loop.index, constant(stream * ROWS_EACH))
                builder.store(vector, builder.gep(kept, [at]))
        halved = halved_sums(builder, [builder.load(builder.gep(kept, [constant(at)])) for at in range(COLUMN)])
        for at in range(COLUMN):
            stream, row = divmod(at, ROWS_EACH)
            place = builder.add(builder.mul(apart, constant(stream)), constant(row))
            builder.store(builder.extract_element(halved, ir.Constant(I32, at)), builder.gep(out, [place]))
        return context.get_dummy_value()

    return types.void(tag, *[types.int64] * 5), generate


dots_apart = cast(Callable[[Tag, int, int, int, int, int], None], intrinsic(_apart))
"""``(tag, w, x, y, apart, n)``: `ROWS_EACH` rows of n weights at ``w`` and in `STREAMS` - 1 more places, each ``apart``
rows behind the one before, with one row of activations; results to as many places of ``y``. n is a multiple of 16."""
