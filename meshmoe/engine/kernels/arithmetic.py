"""Functions of float32 numbers, in operations whose rounding is fixed, so that they are the same on every CPU."""

from __future__ import annotations

import numpy as np

from meshmoe.engine.kernels.apart import ROWS_EACH, STREAMS, dots_apart
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.dots import (
    COLUMN,
    LANES,
    LONG_VECTORS,
    READS_APART,
    dots_1x1,
    dots_2x2,
    dots_2x4,
    dots_column1,
    dots_column1_short,
    dots_column2,
    dots_column3,
    dots_column4,
    prefetch_lines,
)
from meshmoe.engine.kernels.primitives import (
    F32_TAG,
    Tag,
    fma,
    int64,
    out_of_line,
    read,
    rounded,
    size_of,
    two_to,
    write,
)

_LOWEST, _HIGHEST = np.float32(-87.33), np.float32(88.37)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(-0.693359375), np.float32(2.12194440e-4)
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4, _C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
TILE_ROWS = 4 if LONG_VECTORS else 2
"""Rows of activations that are computed at once."""

_BLOCK_BYTES_MIN, _BLOCK_BYTES_MAX = 8 << 10, 16 << 10
_NEAR_BYTES = 32 << 10  # of activations, that stay in the nearest cache beside two blocks of weights
_SHORT_BYTES = 1024
_LINE_BYTES = 64
_HALF, _ONE = np.float32(0.5), np.float32(1.0)


@jit
def exp(x: np.float32) -> np.float32:
    """e to the x, within 2 units in the last place; arguments beyond -87.33 and 88.37 count as these.

    Source: the polynomial of Cephes' ``expf`` (Moshier, 1992).
    """
    x = min(max(x, _LOWEST), _HIGHEST)
    n = np.floor(fma(x, _LOG2_E, _HALF))
    r = fma(n, _LN2_LOW, fma(n, _LN2_HIGH, x))
    p = fma(fma(fma(fma(fma(_C0, r, _C1), r, _C2), r, _C3), r, _C4), r, _C5)
    return fma(p * r, r, r + _ONE) * two_to(n)


@jit
def sigmoid(x: np.float32) -> np.float32:
    """1 / (1 + e^-x)."""
    return _ONE / (_ONE + exp(-x))


@jit
def silu(x: np.float32) -> np.float32:
    """x / (1 + e^-x)."""
    return x / (_ONE + exp(-x))


@jit
def product(tag: Tag, w: int, x: int, y: int, rows: int, n: int, k: int) -> None:
    """Rows times a transposed matrix, in float32.

    Args:
        tag: Dtype of the weights.
        w: ``[n, k]`` weights.
        x: ``[rows, k]`` in the same dtype.
        y: ``[rows, n]`` float32; must not overlap ``x``.
        rows: At least 1.
        n: Width of the result.
        k: Width of the input.
    """
    product_part(tag, w, x, y, rows, n, k, int64(0), n)


@jit
def product_part(tag: Tag, w: int, x: int, y: int, rows: int, n: int, k: int, first: int, last: int) -> None:
    """As `product`, of the columns from ``first`` to before ``last`` of ``y``.

    Few rows go by every row of weights. For more, weights are taken in blocks that stay in the nearest cache while all
    rows go by, and memory is meanwhile asked for the next block.
    """
    out_of_line()
    size = size_of(tag) * k
    if rows <= TILE_ROWS:
        columns(tag, w + first * size, x, y + 4 * first, rows, last - first, k, n)
        return
    far = rows * size > _NEAR_BYTES
    block = max(2, (_BLOCK_BYTES_MAX if far else _BLOCK_BYTES_MIN) // size // 2 * 2)
    passes, tiles = (rows + TILE_ROWS - 1) // TILE_ROWS, block // 2
    w_lines = _lines_each(block * size, passes * tiles)
    x_lines = _lines_each(TILE_ROWS * size, tiles) if far else 0
    for begin in range(first, last, block):
        end = min(begin + block, last)
        next_w = w + end * size
        for number in range(passes):
            r = min(number * TILE_ROWS, rows - TILE_ROWS)  # the last ones perhaps twice: faster than fewer at once
            next_x = x + (min(r + TILE_ROWS, rows - TILE_ROWS) if number + 1 < passes else 0) * size
            at_x, at_y = x + r * size, y + 4 * r * n
            for j in range(begin, end - 1, 2):
                prefetch_lines(next_w, w_lines)
                prefetch_lines(next_x, x_lines)
                next_w += w_lines * _LINE_BYTES
                next_x += x_lines * _LINE_BYTES
                if LONG_VECTORS:
                    dots_2x4(tag, w + j * size, k, at_x, k, at_y + 4 * j, 1, n, k)
                else:
                    dots_2x2(tag, w + j * size, k, at_x, k, at_y + 4 * j, 1, n, k)
            if (end - begin) % 2:
                j = end - 1
                for i in range(TILE_ROWS):
                    dots_1x1(tag, w + j * size, k, at_x + i * size, k, at_y + 4 * (i * n + j), 1, n, k)


@jit
def _lines_each(size: int, parts: int) -> int:
    return (size + parts * _LINE_BYTES - 1) // (parts * _LINE_BYTES)


@jit
def columns(tag: Tag, w: int, x: int, y: int, rows: int, n: int, k: int, y_stride: int) -> None:
    """As `product` of up to `TILE_ROWS` rows, where rows of ``y`` stand ``y_stride`` numbers apart."""
    out_of_line()
    size, j = size_of(tag) * k, 0
    if READS_APART and rows == 1 and size >= _SHORT_BYTES and k % LANES == 0:
        apart = n // COLUMN * ROWS_EACH
        for i in range(0, apart, ROWS_EACH):
            dots_apart(tag, w + i * size, x, y + 4 * i, apart, k)
        j = STREAMS * apart
    while j + COLUMN <= n:
        at_w, at_y = w + j * size, y + 4 * j
        if rows == 1 and size < _SHORT_BYTES:
            dots_column1_short(tag, at_w, k, x, k, at_y, y_stride, k)
        elif rows == 1:
            dots_column1(tag, at_w, k, x, k, at_y, y_stride, k)
        elif rows == 2:
            dots_column2(tag, at_w, k, x, k, at_y, y_stride, k)
        elif rows == 3:
            dots_column3(tag, at_w, k, x, k, at_y, y_stride, k)
        else:
            dots_column4(tag, at_w, k, x, k, at_y, y_stride, k)
        j += COLUMN
    while j < n:
        for r in range(rows):
            dots_1x1(tag, w + j * size, k, x + r * size, k, y + 4 * (r * y_stride + j), 1, 1, k)
        j += 1


@jit
def linear_part(tag: Tag, w: int, bias: int, x: int, y: int, rows: int, n: int, k: int, first: int, last: int) -> None:
    """As `product_part`, with a bias (``[n]``, or 0 for none), rounded to the dtype of the weights."""
    out_of_line()
    product_part(tag, w, x, y, rows, n, k, first, last)
    for r in range(rows):
        for j in range(first, last):
            value = read(F32_TAG, y, r * n + j)
            if bias != 0:
                value += read(tag, bias, j)
            write(F32_TAG, y, r * n + j, rounded(tag, value))


@jit
def gate(tag: Tag, gates: int, ups: int, out: int, n: int) -> None:
    """``silu(gates) * ups`` of n float32 numbers each, both steps rounded, to n numbers of the model's dtype."""
    for i in range(n):
        activated = rounded(tag, silu(read(F32_TAG, gates, i)))
        write(tag, out, i, activated * read(F32_TAG, ups, i))
