"""Triton kernels of a decode step for few rows: every row's bits are its own.

A row is computed in the same order of sums whatever stands beside it in the batch, so that batching and placement
change no token: products go through tiles of 16 rows whose rows do not mix, attention is split at fixed positions and
put together in order. All sums are float32; results are rounded to the model's
dtype where transformers' eager code rounds them.

Flash-decoding's split is after Dao et al. 2023; that fixed splits make attention independent of the batch is from He
et al. 2025, "Defeating Nondeterminism in LLM Inference".
"""

from __future__ import annotations

import triton
import triton.language as tl

# A number of rows is not compiled in: each kernel would have versions for one row and for multiples of 16, which a node
# would meet, and compile, in the middle of its work.

SPLIT_TOKENS = 256
"""Positions that one program of attention reads; fixed, or bits would depend on the longest text of the batch."""


@triton.jit
def norm_rows(x, weight, out, eps, hidden: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """RMS norm of ``[B, H]``, as transformers has it: normalised in float32, rounded, then times the weight."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < hidden
    value = tl.load(x + row * hidden + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / hidden + eps)
    dtype = out.dtype.element_ty
    normed = (value * scale).to(dtype).to(tl.float32)
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * hidden + at, (normed * gain).to(dtype), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def linear_rows(
    x, weight, residual, out, rows, width, inner: tl.constexpr, ADD: tl.constexpr, N: tl.constexpr, K: tl.constexpr
) -> None:
    """``out[B, width] = x[B, inner] @ weight[width, inner].T``, rounded; with ``ADD`` plus a residual, and rounded."""
    row = tl.program_id(1) * 16 + tl.arange(0, 16)
    column = tl.program_id(0) * N + tl.arange(0, N)
    at = tl.arange(0, K)
    here = row < rows
    wide = column < width
    total = tl.zeros((16, N), tl.float32)
    for begin in range(0, inner, K):
        depth = begin + at
        deep = depth < inner
        a = tl.load(x + row[:, None] * inner + depth[None, :], mask=here[:, None] & deep[None, :], other=0.0)
        w = tl.load(weight + column[None, :] * inner + depth[:, None], mask=wide[None, :] & deep[:, None], other=0.0)
        total = tl.dot(a, w, total, input_precision="ieee")
    place = row[:, None] * width + column[None, :]
    mask = here[:, None] & wide[None, :]
    dtype = out.dtype.element_ty
    value = total.to(dtype)
    if ADD:
        value = (tl.load(residual + place, mask=mask, other=0.0).to(tl.float32) + value.to(tl.float32)).to(dtype)
    tl.store(out + place, value, mask=mask)


@triton.jit
def heads_to_cache(
    qkv, q_norm, k_norm, cos, sin, positions, tables, also_from, also, keys, values, queries, eps,
    HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
    STRIDE: tl.constexpr, MAX_BLOCKS,
) -> None:  # fmt: skip
    """Norm and rotate a row's heads: keys and values go to their places in the cache, queries to ``[B, HEADS, D]``.

    ``cos`` and ``sin`` are ``[positions, D]``, ``tables`` is ``[B, MAX_BLOCKS]``. A block's keys of a layer are
    ``[KV, BLOCK, D]``, and so are its values; from one block to the next are ``STRIDE`` numbers. Forks that read the
    row, too, have it in blocks of their own: ``also`` names them, from ``also_from[row]`` on, which is ``[B + 1]``.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(also_from + row), tl.load(also_from + row + 1)
    half: tl.constexpr = D // 2
    at = tl.arange(0, D)
    base = qkv + (row * (HEADS + 2 * KV) + head) * D
    dtype = queries.dtype.element_ty
    position = tl.load(positions + row)
    block = tl.load(tables + row * MAX_BLOCKS + position // BLOCK)
    within = position % BLOCK * D
    if head >= HEADS + KV:
        place = values + within + (head - HEADS - KV) * BLOCK * D + at
        value = tl.load(base + at)
        tl.store(place + block.to(tl.int64) * STRIDE, value)
        for fork in range(first, last):
            tl.store(place + tl.load(also + fork).to(tl.int64) * STRIDE, value)
    else:
        other = tl.where(at < half, at + half, at - half)
        mine = tl.load(base + at).to(tl.float32)
        theirs = tl.load(base + other).to(tl.float32)
        if NORM:
            scale = tl.rsqrt(tl.sum(mine * mine, 0) / D + eps)
            gains = q_norm if head < HEADS else k_norm
            mine = (mine * scale).to(dtype).to(tl.float32) * tl.load(gains + at).to(tl.float32)
            theirs = (theirs * scale).to(dtype).to(tl.float32) * tl.load(gains + other).to(tl.float32)
            mine = mine.to(dtype).to(tl.float32)
            theirs = theirs.to(dtype).to(tl.float32)
        c = tl.load(cos + position * D + at).to(tl.float32)
        s = tl.load(sin + position * D + at).to(tl.float32)
        turned = tl.where(at < half, -theirs, theirs)
        result = ((mine * c).to(dtype).to(tl.float32) + (turned * s).to(dtype).to(tl.float32)).to(dtype)
        if head < HEADS:
            tl.store(queries + (row * HEADS + head) * D + at, result)
        else:
            place = keys + within + (head - HEADS) * BLOCK * D + at
            tl.store(place + block.to(tl.int64) * STRIDE, result)
            for fork in range(first, last):
                tl.store(place + tl.load(also + fork).to(tl.int64) * STRIDE, result)


@triton.jit
def attend_split(
    queries, keys, values, positions, tables, partial, tops, sums, scale,
    HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr,
    SPLIT: tl.constexpr, GROUP: tl.constexpr, SPLITS, MAX_BLOCKS,
) -> None:  # fmt: skip
    """One split of attention for one row and one key head: unnormalised output, maximum and sum of exponentials.

    ``partial`` is ``[B, SPLITS, HEADS, D]``, ``tops`` and ``sums`` ``[B, SPLITS, HEADS]``, all float32. ``GROUP`` is
    the number of query heads a key head, filled up to 16.
    """
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(positions + row) + 1
    begin = split * SPLIT
    if begin < length:
        share: tl.constexpr = HEADS // KV
        member = tl.arange(0, GROUP)
        real = member < share
        at = tl.arange(0, D)
        q = tl.load(
            queries + (row * HEADS + head * share + member)[:, None] * D + at[None, :], mask=real[:, None], other=0.0
        )
        top = tl.full((GROUP,), float("-inf"), tl.float32)
        total = tl.zeros((GROUP,), tl.float32)
        out = tl.zeros((GROUP, D), tl.float32)
        within = tl.arange(0, BLOCK)
        for first in range(begin, min(begin + SPLIT, length), BLOCK):
            block = tl.load(tables + row * MAX_BLOCKS + first // BLOCK)
            place = block.to(tl.int64) * STRIDE + (head * BLOCK + within) * D
            valid = first + within < length
            k = tl.load(keys + place[None, :] + at[:, None], mask=valid[None, :], other=0.0)
            scores = tl.where(valid[None, :], tl.dot(q, k, input_precision="ieee") * scale, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            shrink = tl.exp(top - higher)
            total = total * shrink + tl.sum(weights, 1)
            v = tl.load(values + place[:, None] + at[None, :], mask=valid[:, None], other=0.0)
            out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            top = higher
        to = (row * SPLITS + split) * HEADS + head * share + member
        tl.store(partial + to[:, None] * D + at[None, :], out, mask=real[:, None])
        tl.store(tops + to, top, mask=real)
        tl.store(sums + to, total, mask=real)


@triton.jit
def attend_join(
    partial, tops, sums, positions, out, HEADS: tl.constexpr, D: tl.constexpr, SPLIT: tl.constexpr, SPLITS
) -> None:
    """Put the splits together in order; ``out`` is ``[B, HEADS, D]``."""
    row, head = tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, D)
    count = tl.load(positions + row) // SPLIT + 1
    highest = float("-inf")
    total = 0.0
    result = tl.zeros((D,), tl.float32)
    for split in range(count):
        to = (row * SPLITS + split) * HEADS + head
        top = tl.load(tops + to)
        higher = tl.maximum(highest, top)
        keep = tl.exp(highest - higher)
        add = tl.exp(top - higher)
        total = total * keep + tl.load(sums + to) * add
        result = result * keep + tl.load(partial + to * D + at) * add
        highest = higher
    tl.store(out + (row * HEADS + head) * D + at, (result / total).to(out.dtype.element_ty))


@triton.jit
def route_rows(
    logits, experts, local, chosen, weights, held, lacking, layer,
    EXPERTS: tl.constexpr, E: tl.constexpr, TOP_K: tl.constexpr, NORMALISE: tl.constexpr, ROUND: tl.constexpr,
) -> None:  # fmt: skip
    """Softmax and the best experts of a row, ascending by number; says which layer first lacks one.

    Of equal scores the lower number wins. ``experts`` is the layer's part of the table of addresses, ``[EXPERTS, 2]``.
    ``chosen`` gets the numbers, ``[B, TOP_K]``, and ``held`` the same with -1 for what is not resident. A row with
    ``local`` chooses among the resident ones alone; where these are fewer, -1 fills up.
    """
    row = tl.program_id(0)
    at = tl.arange(0, E)
    value = tl.load(logits + row * EXPERTS + at, mask=at < EXPERTS, other=float("-inf")).to(tl.float32)
    address = tl.load(experts + 2 * at, mask=at < EXPERTS, other=0)
    resident = tl.where(address != 0, at, -1)
    top = tl.max(value, 0)
    shares = tl.exp(value - top)
    shares = shares / tl.sum(shares, 0)
    picked = tl.zeros((E,), tl.int32)
    barred = (at >= EXPERTS) | ((tl.load(local + row) != 0) & (resident < 0))
    left = tl.where(barred, -1.0, shares)
    total = 0.0
    for _ in range(TOP_K):
        best = tl.argmax(left, 0)
        highest = tl.max(left, 0)
        found = highest >= 0.0
        total += tl.where(found, highest, 0.0)
        picked = tl.where((at == best) & found, 1, picked)
        left = tl.where(at == best, -1.0, left)
    if NORMALISE:
        shares = shares / total
    if ROUND:
        shares = shares.to(weights.dtype.element_ty).to(tl.float32)
    rank = tl.cumsum(picked, 0) - 1
    take = picked == 1
    to = row * TOP_K + rank
    tl.store(chosen + to, at, mask=take)
    tl.store(held + to, resident, mask=take)
    tl.store(weights + to, shares.to(weights.dtype.element_ty), mask=take)
    empty = (at < TOP_K) & (at >= tl.sum(picked, 0))
    tl.store(chosen + row * TOP_K + at, -1, mask=empty)
    tl.store(held + row * TOP_K + at, -1, mask=empty)
    if tl.min(tl.where(take, resident, 0), 0) < 0:
        tl.atomic_min(lacking, layer)


@triton.jit
def _rows_of(held, pair, expert, rows, TOP_K: tl.constexpr, KS: tl.constexpr):
    """Which of the 16 rows around a pair chose an expert, with their pairs; whether this one is first.

    A row chooses an expert at most once, so rows need no sorting: each of a tile's rows either takes part or does not.
    """
    first = pair // TOP_K // 16 * 16
    row = first + tl.arange(0, 16)
    slot = tl.arange(0, KS)
    inside = (row < rows)[:, None] & (slot < TOP_K)[None, :]
    matches = tl.load(held + row[:, None] * TOP_K + slot[None, :], mask=inside, other=-1) == expert
    takes = tl.sum(matches.to(tl.int32), 1) > 0
    pairs = row * TOP_K + tl.sum(tl.where(matches, slot[None, :], 0), 1)
    leads = tl.min(tl.where(takes, pairs, 2147483647), 0) == pair
    return row, takes, pairs, leads


@triton.jit(do_not_specialize=["rows"])
def experts_up(
    x, experts, held, inner, rows, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, TOP_K: tl.constexpr, KS: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr,
) -> None:  # fmt: skip
    """``silu(gate) * up`` of each (row, expert) pair.

    The first pair of a tile of 16 rows that names an expert computes it for all of them, so its weights are read once.
    ``inner`` is ``[pairs, WIDTH]``.
    ``KS`` is ``TOP_K`` filled up to a power of two.
    """
    pair = tl.program_id(1)
    expert = tl.load(held + pair)
    if expert >= 0:
        row, takes, pairs, leads = _rows_of(held, pair, expert, rows, TOP_K, KS)
        if leads:
            unit = tl.program_id(0) * N + tl.arange(0, N)
            real = unit < WIDTH
            at = tl.arange(0, K)
            base = tl.load(experts + 2 * expert).to(tl.pointer_type(x.dtype.element_ty))
            gate = tl.zeros((16, N), tl.float32)
            up = tl.zeros((16, N), tl.float32)
            for begin in range(0, HIDDEN, K):
                deep = begin + at < HIDDEN
                value = tl.load(
                    x + row[:, None] * HIDDEN + begin + at[None, :], mask=takes[:, None] & deep[None, :], other=0.0
                )
                mask = real[None, :] & deep[:, None]
                # An address that was loaded is not known to be aligned; these are, if rows are of 16 bytes or more.
                from_ = tl.multiple_of(base + unit[None, :] * HIDDEN + begin + at[:, None], (16, 16))
                gate = tl.dot(value, tl.load(from_, mask=mask, other=0.0), gate, input_precision="ieee")
                w = tl.load(from_ + WIDTH * HIDDEN, mask=mask, other=0.0)
                up = tl.dot(value, w, up, input_precision="ieee")
            dtype = inner.dtype.element_ty
            g = gate.to(dtype).to(tl.float32)
            silu = (g / (1.0 + tl.exp(-g))).to(dtype).to(tl.float32)
            result = (silu * up.to(dtype).to(tl.float32)).to(dtype)
            tl.store(inner + pairs[:, None] * WIDTH + unit[None, :], result, mask=takes[:, None] & real[None, :])


@triton.jit(do_not_specialize=["rows"])
def experts_down(
    inner, experts, held, outputs, rows, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, TOP_K: tl.constexpr,
    KS: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
) -> None:  # fmt: skip
    """The down projection of each pair; ``outputs`` is ``[pairs, HIDDEN]``."""
    pair = tl.program_id(1)
    expert = tl.load(held + pair)
    if expert >= 0:
        _, takes, pairs, leads = _rows_of(held, pair, expert, rows, TOP_K, KS)
        if leads:
            unit = tl.program_id(0) * N + tl.arange(0, N)
            real = unit < HIDDEN
            at = tl.arange(0, K)
            base = tl.load(experts + 2 * expert + 1).to(tl.pointer_type(inner.dtype.element_ty))
            total = tl.zeros((16, N), tl.float32)
            for begin in range(0, WIDTH, K):
                deep = begin + at < WIDTH
                value = tl.load(
                    inner + pairs[:, None] * WIDTH + begin + at[None, :], mask=takes[:, None] & deep[None, :], other=0.0
                )
                mask = real[None, :] & deep[:, None]
                from_ = tl.multiple_of(base + unit[None, :] * WIDTH + begin + at[:, None], (16, 16))
                w = tl.load(from_, mask=mask, other=0.0)
                total = tl.dot(value, w, total, input_precision="ieee")
            dtype = outputs.dtype.element_ty
            tl.store(
                outputs + pairs[:, None] * HIDDEN + unit[None, :], total.to(dtype), mask=takes[:, None] & real[None, :]
            )


@triton.jit
def join_rows(
    outputs, chosen, weights, residual, x, HIDDEN: tl.constexpr, TOP_K: tl.constexpr, N: tl.constexpr
) -> None:
    """Weigh and add a row's experts in ascending order, rounding as stock eager does, then the residual, into ``x``."""
    row = tl.program_id(1)
    unit = tl.program_id(0) * N + tl.arange(0, N)
    real = unit < HIDDEN
    dtype = x.dtype.element_ty
    total = tl.zeros((N,), tl.float32)
    for i in range(TOP_K):
        pair = row * TOP_K + i
        if tl.load(chosen + pair) >= 0:
            weight = tl.load(weights + pair).to(tl.float32)
            part = tl.load(outputs + pair * HIDDEN + unit, mask=real, other=0.0).to(tl.float32) * weight
            total = (total + part.to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    old = tl.load(residual + row * HIDDEN + unit, mask=real, other=0.0).to(tl.float32)
    tl.store(x + row * HIDDEN + unit, (old + total).to(dtype), mask=real)


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is not below ``value``."""
    return int(triton.next_power_of_2(value))
