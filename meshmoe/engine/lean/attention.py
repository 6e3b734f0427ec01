"""Attention over a key-value cache in blocks, with everything that a family may do to queries and keys before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from meshmoe.engine.kernels.arithmetic import TILE_ROWS, columns, exp
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.crew import linear
from meshmoe.engine.kernels.dots import dot, mix
from meshmoe.engine.kernels.primitives import F32_TAG, Tag, address_at, out_of_line, read, rounded, size_of, write
from meshmoe.engine.lean.tables import Layer, Norm, Number, Place, QkNorm, Shape, Token

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

BLOCK_TOKENS = 32
"""Tokens in a block of keys and values."""

_ONE = np.float32(1)


@jit
def normalise(tag: Tag, out: Tag, kind: int, weight: int, bias: int, eps: np.float32, x: int, y: int, n: int) -> None:
    """A hidden state's norm; ``x`` is ``[n]`` float32, ``y`` ``[n]`` with tag ``out``; both may be the same float32.

    RMS (arXiv 1910.07467) is rounded as transformers does, before and after the weight; layer norm is rounded once.
    """
    out_of_line()
    if kind == Norm.RMS:
        factor = _ONE / np.sqrt(dot(F32_TAG, x, x, n) / np.float32(n) + eps)
        for i in range(n):
            value = rounded(tag, read(F32_TAG, x, i) * factor)
            write(out, y, i, rounded(tag, read(tag, weight, i) * value))
        return
    mean = np.float32(0)
    for i in range(n):
        mean += read(F32_TAG, x, i)
    mean /= np.float32(n)
    variance = np.float32(0)
    for i in range(n):
        apart = read(F32_TAG, x, i) - mean
        variance += apart * apart
    factor = _ONE / np.sqrt(variance / np.float32(n) + eps)
    for i in range(n):
        value = (read(F32_TAG, x, i) - mean) * factor * read(tag, weight, i)
        if bias != 0:
            value += read(tag, bias, i)
        write(out, y, i, rounded(tag, value))


@jit
def rotate(tag: Tag, head: int, cos: int, sin: int, n: int, scratch: int) -> None:
    """Rotate the first n numbers of a head by its position (arXiv 2104.09864), halves against each other.

    ``scratch`` has room for n / 2 float32. One loop for both halves would not need it, but compilers do not see that
    nothing overlaps in it, and take one number at a time.
    """
    half = n // 2
    low, high = head, head + 4 * half
    for i in range(half):
        turned = rounded(tag, read(F32_TAG, high, i) * read(F32_TAG, cos, half + i))
        turned += rounded(tag, read(F32_TAG, low, i) * read(F32_TAG, sin, half + i))
        write(F32_TAG, scratch, i, rounded(tag, turned))
    for i in range(half):
        turned = rounded(tag, read(F32_TAG, low, i) * read(F32_TAG, cos, i))
        turned += rounded(tag, -read(F32_TAG, high, i) * read(F32_TAG, sin, i))
        write(F32_TAG, low, i, rounded(tag, turned))
    for i in range(half):
        write(F32_TAG, high, i, read(F32_TAG, scratch, i))


@jit
def project(tag: Tag, shape: Ints, numbers: Floats, layer: Ints, places: Ints, rows: Ints) -> None:
    """Queries, keys and values of the normalised hidden states: projected, normalised, clipped and rotated."""
    hidden, size, count = shape[Shape.HIDDEN], shape[Shape.HEAD_DIM], len(rows)
    wide, narrow = shape[Shape.HEADS] * size, shape[Shape.KV_HEADS] * size
    x, q = places[Place.NORMED], places[Place.QKV]
    k = q + 4 * count * wide
    v = k + 4 * count * narrow
    linear(tag, places[Place.DESK], layer[Layer.Q], layer[Layer.Q_BIAS], x, q, count, wide, hidden)
    linear(tag, places[Place.DESK], layer[Layer.K], layer[Layer.K_BIAS], x, k, count, narrow, hidden)
    linear(tag, places[Place.DESK], layer[Layer.V], layer[Layer.V_BIAS], x, v, count, narrow, hidden)
    eps, clip = numbers[Number.QK_NORM_EPS], numbers[Number.CLIP_QKV]
    if shape[Shape.QK_NORM] == QkNorm.HEAD:
        for j in range(count * shape[Shape.HEADS]):
            normalise(tag, F32_TAG, 0, layer[Layer.Q_NORM], 0, eps, q + 4 * j * size, q + 4 * j * size, size)
        for j in range(count * shape[Shape.KV_HEADS]):
            normalise(tag, F32_TAG, 0, layer[Layer.K_NORM], 0, eps, k + 4 * j * size, k + 4 * j * size, size)
    elif shape[Shape.QK_NORM] == QkNorm.WHOLE:
        for r in range(count):
            normalise(tag, F32_TAG, 0, layer[Layer.Q_NORM], 0, eps, q + 4 * r * wide, q + 4 * r * wide, wide)
            normalise(tag, F32_TAG, 0, layer[Layer.K_NORM], 0, eps, k + 4 * r * narrow, k + 4 * r * narrow, narrow)
    if clip > 0:
        for i in range(count * (wide + 2 * narrow)):
            write(F32_TAG, q, i, min(max(read(F32_TAG, q, i), -clip), clip))
    for r in range(count):
        cos, sin, turned = rows[r, Token.COS], rows[r, Token.SIN], shape[Shape.ROTARY_DIM]
        for j in range(shape[Shape.HEADS]):
            rotate(tag, q + 4 * (r * wide + j * size), cos, sin, turned, places[Place.MIXED])
        for j in range(shape[Shape.KV_HEADS]):
            rotate(tag, k + 4 * (r * narrow + j * size), cos, sin, turned, places[Place.MIXED])


@jit
def remember(tag: Tag, shape: Ints, places: Ints, rows: Ints, at: int) -> None:
    """Store the rows' keys and values of layer ``at`` in the blocks of all sequences that read them (see `blocks`)."""
    size, kv_heads, count = shape[Shape.HEAD_DIM], shape[Shape.KV_HEADS], len(rows)
    k = places[Place.QKV] + 4 * count * shape[Shape.HEADS] * size
    v = k + 4 * count * kv_heads * size
    head_bytes = BLOCK_TOKENS * size * size_of(tag)
    for r in range(count):
        block, place = divmod(rows[r, Token.POSITION], BLOCK_TOKENS)
        also = rows[r, Token.ALSO]
        for n in range(1 + (address_at(also, 0) if also != 0 else 0)):
            blocks = rows[r, Token.BLOCKS] if n == 0 else address_at(also, n)
            keys = address_at(blocks, block) + at * 2 * kv_heads * head_bytes
            for j in range(kv_heads):
                for i in range(size):
                    to = place * size + i
                    write(tag, keys + j * head_bytes, to, read(F32_TAG, k, (r * kv_heads + j) * size + i))
                    write(tag, keys + (kv_heads + j) * head_bytes, to, read(F32_TAG, v, (r * kv_heads + j) * size + i))


@jit
def attend(tag: Tag, shape: Ints, numbers: Floats, places: Ints, rows: Ints, r: int, at: int) -> None:
    """Attend with row ``r`` to all of its sequence up to itself, in layer ``at``."""
    size, heads, kv_heads = shape[Shape.HEAD_DIM], shape[Shape.HEADS], shape[Shape.KV_HEADS]
    group, tokens, blocks = heads // kv_heads, rows[r, Token.POSITION] + 1, rows[r, Token.BLOCKS]
    scores, ones, mixed = places[Place.SCORES], places[Place.ONES], places[Place.MIXED]
    wide = size * size_of(tag)
    head_bytes, out = BLOCK_TOKENS * wide, places[Place.ATTENDED] + r * heads * wide
    q = places[Place.QKV] + 4 * r * heads * size
    for i in range(heads * size):
        write(tag, places[Place.QUERIES], i, read(F32_TAG, q, i))
    for j in range(kv_heads):
        in_block = (at * 2 * kv_heads + j) * head_bytes
        for begin in range(0, tokens, BLOCK_TOKENS):
            keys, count = address_at(blocks, begin // BLOCK_TOKENS) + in_block, min(BLOCK_TOKENS, tokens - begin)
            query, score, left = places[Place.QUERIES] + j * group * wide, scores + 4 * begin, group
            while left > 0:
                # Keys are read once for several of the queries that share them.
                taken = min(left, TILE_ROWS)
                columns(tag, keys, query, score, taken, count, size, tokens)
                query, score, left = query + taken * wide, score + 4 * taken * tokens, left - taken
        in_block += kv_heads * head_bytes
        for i in range(group):
            row = scores + 4 * i * tokens
            share = _ONE / soften(tag, row, ones, numbers[Number.ATTENTION_SCALE], tokens)
            for begin in range(0, tokens, BLOCK_TOKENS):
                values = address_at(blocks, begin // BLOCK_TOKENS) + in_block
                mix(tag, values, size, row + 4 * begin, mixed, min(BLOCK_TOKENS, tokens - begin), size, begin)
            for n in range(size):
                write(tag, out, (j * group + i) * size + n, read(F32_TAG, mixed, n) * share)


@jit
def soften(tag: Tag, x: int, ones: int, scale: np.float32, n: int) -> np.float32:
    """Softmax of n float32 numbers times ``scale``, in place, but for the division by the sum.

    As torch's attention on CPUs, which rounds the shares of narrow dtypes before it mixes the values with them, and
    divides the mixture by the sum of what was not rounded.

    Args:
        tag: Dtype of the values.
        x: The numbers; gets e to each of them, relative to the highest, rounded.
        ones: ``[n]`` ones, to sum with.
        scale: Applied first.
        n: How many.

    Returns:
        The sum.
    """
    highest = read(F32_TAG, x, 0)
    for i in range(1, n):
        value = read(F32_TAG, x, i)
        highest = value if value > highest else highest
    for i in range(n):
        write(F32_TAG, x, i, exp((read(F32_TAG, x, i) - highest) * scale))
    total = dot(F32_TAG, x, ones, n)
    for i in range(n):
        write(F32_TAG, x, i, rounded(tag, read(F32_TAG, x, i)))
    return total
