"""Attention of one token over a key-value cache, with everything that a family may do to queries and keys before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from meshmoe.engine.kernels.arithmetic import exp, linear
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.primitives import (
    F32_TAG,
    Tag,
    dot,
    dots_1x1,
    dots_1x2,
    dots_1x4,
    mix,
    out_of_line,
    read,
    rounded,
    size_of,
    write,
)
from meshmoe.engine.lean.tables import Layer, Norm, Number, Place, QkNorm, Shape

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_ONE = np.float32(1)


@jit
def normalise(tag: Tag, kind: int, weight: int, bias: int, eps: np.float32, x: int, y: int, n: int) -> None:
    """A hidden state's norm; ``x`` and ``y`` are ``[n]`` float32 and may be the same.

    RMS (arXiv 1910.07467) is rounded as transformers does, before and after the weight; layer norm is rounded once.
    """
    out_of_line()
    if kind == Norm.RMS:
        factor = _ONE / np.sqrt(dot(F32_TAG, x, x, n) / np.float32(n) + eps)
        for i in range(n):
            value = rounded(tag, read(F32_TAG, x, i) * factor)
            write(F32_TAG, y, i, rounded(tag, read(tag, weight, i) * value))
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
        write(F32_TAG, y, i, rounded(tag, value))


@jit
def rotate(tag: Tag, head: int, cos: int, sin: int, n: int) -> None:
    """Rotate the first n numbers of a head by its position (arXiv 2104.09864), halves against each other."""
    half = n // 2
    for i in range(half):
        low, high = read(F32_TAG, head, i), read(F32_TAG, head, half + i)
        low_cos, high_cos = read(F32_TAG, cos, i), read(F32_TAG, cos, half + i)
        low_sin, high_sin = read(F32_TAG, sin, i), read(F32_TAG, sin, half + i)
        turned_low = rounded(tag, low * low_cos) + rounded(tag, -high * low_sin)
        turned_high = rounded(tag, high * high_cos) + rounded(tag, low * high_sin)
        write(F32_TAG, head, i, rounded(tag, turned_low))
        write(F32_TAG, head, half + i, rounded(tag, turned_high))


@jit
def project(tag: Tag, shape: Ints, numbers: Floats, layer: Ints, places: Ints) -> None:
    """Queries, keys and values of the normalised hidden state: projected, normalised, clipped and rotated."""
    hidden, size = shape[Shape.HIDDEN], shape[Shape.HEAD_DIM]
    heads, kv_heads = shape[Shape.HEADS], shape[Shape.KV_HEADS]
    x, q = places[Place.NORMED], places[Place.QKV]
    k = q + 4 * heads * size
    v = k + 4 * kv_heads * size
    linear(tag, layer[Layer.Q], layer[Layer.Q_BIAS], x, q, 1, heads * size, hidden)
    linear(tag, layer[Layer.K], layer[Layer.K_BIAS], x, k, 1, kv_heads * size, hidden)
    linear(tag, layer[Layer.V], layer[Layer.V_BIAS], x, v, 1, kv_heads * size, hidden)
    eps = numbers[Number.QK_NORM_EPS]
    if shape[Shape.QK_NORM] == QkNorm.HEAD:
        for j in range(heads):
            normalise(tag, 0, layer[Layer.Q_NORM], 0, eps, q + 4 * j * size, q + 4 * j * size, size)
        for j in range(kv_heads):
            normalise(tag, 0, layer[Layer.K_NORM], 0, eps, k + 4 * j * size, k + 4 * j * size, size)
    elif shape[Shape.QK_NORM] == QkNorm.WHOLE:
        normalise(tag, 0, layer[Layer.Q_NORM], 0, eps, q, q, heads * size)
        normalise(tag, 0, layer[Layer.K_NORM], 0, eps, k, k, kv_heads * size)
    clip = numbers[Number.CLIP_QKV]
    if clip > 0:
        for i in range((heads + 2 * kv_heads) * size):
            write(F32_TAG, q, i, min(max(read(F32_TAG, q, i), -clip), clip))
    for j in range(heads + kv_heads):
        rotate(tag, q + 4 * j * size, places[Place.COS], places[Place.SIN], shape[Shape.ROTARY_DIM])


@jit
def attend(
    tag: Tag, shape: Ints, numbers: Floats, places: Ints, keys: int, values: int, room: int, position: int
) -> None:
    """Add the token's key and value to the cache and attend to all that are in it.

    Args:
        tag: Dtype of the cache.
        shape: See `tables`.
        numbers: See `tables`.
        places: See `tables`.
        keys: ``[kv_heads, room, head_dim]``.
        values: The same.
        room: Tokens that the cache has room for.
        position: Tokens in it; this one is stored behind them.
    """
    size, heads, kv_heads = shape[Shape.HEAD_DIM], shape[Shape.HEADS], shape[Shape.KV_HEADS]
    group, tokens = heads // kv_heads, position + 1
    q, scores, ones = places[Place.QKV], places[Place.SCORES], places[Place.ONES]
    k = q + 4 * heads * size
    v = k + 4 * kv_heads * size
    row_bytes = size * size_of(tag)
    for j in range(kv_heads):
        head_keys, head_values = keys + j * room * row_bytes, values + j * room * row_bytes
        for i in range(size):
            write(tag, head_keys + position * row_bytes, i, read(F32_TAG, k, j * size + i))
            write(tag, head_values + position * row_bytes, i, read(F32_TAG, v, j * size + i))
        queries = q + 4 * j * group * size
        for t in range(tokens):
            # A key is read once for up to four of the queries that share it.
            key, query, score, left = head_keys + t * row_bytes, queries, scores + 4 * t, group
            while left >= 4:
                dots_1x4(tag, key, 0, query, size, score, 0, tokens, size)
                query, score, left = query + 16 * size, score + 16 * tokens, left - 4
            if left >= 2:
                dots_1x2(tag, key, 0, query, size, score, 0, tokens, size)
                query, score, left = query + 8 * size, score + 8 * tokens, left - 2
            if left > 0:
                dots_1x1(tag, key, 0, query, size, score, 0, tokens, size)
        for r in range(group):
            row = scores + 4 * r * tokens
            share = _ONE / soften(tag, row, ones, numbers[Number.ATTENTION_SCALE], tokens)
            attended = places[Place.ATTENDED] + 4 * (j * group + r) * size
            mix(tag, head_values, size, row, attended, tokens, size)
            for i in range(size):
                write(F32_TAG, attended, i, rounded(tag, read(F32_TAG, attended, i) * share))


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
