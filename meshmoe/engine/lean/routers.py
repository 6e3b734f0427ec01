"""Routers: which experts a token takes, and with what weights; rounded where the families' own code rounds.

Where two experts are exactly level the lower index wins.
"""

from __future__ import annotations

import numpy as np

from meshmoe.engine.kernels.arithmetic import exp, product, sigmoid
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.crew import linear
from meshmoe.engine.kernels.primitives import F32_TAG, Tag, int64, read, rounded, write
from meshmoe.engine.lean.attention import Floats, Ints
from meshmoe.engine.lean.tables import Layer, Number, Place, Router, Shape, Token

_NEVER = np.float32(-np.inf)
_TINY = np.float32(1e-20)


@jit
def best_of(scores: int, begin: int, end: int) -> int:
    """The place of the highest of float32 numbers; the first of those that are level."""
    best = begin
    for i in range(begin + 1, end):
        if read(F32_TAG, scores, i) > read(F32_TAG, scores, best):
            best = i
    return best


@jit
def route(
    tag: Tag, shape: Ints, numbers: Floats, layer: Ints, places: Ints, experts: Ints, rows: Ints, chosen: Ints
) -> None:
    """Choose experts for the normalised hidden states.

    Args:
        tag: Dtype of the model.
        shape: See `tables`.
        numbers: See `tables`.
        layer: See `tables`.
        places: See `tables`; the weights go to ``WEIGHTS``.
        experts: ``[experts, 2]``; who may only choose among the resident ones finds them here.
        rows: See `tables`.
        chosen: ``[rows, k]``; gets the experts, ascending, and -1 behind them where there are fewer than k.
    """
    count, hidden, top_k, logits = layer[Layer.EXPERTS], shape[Shape.HIDDEN], layer[Layer.TOP_K], places[Place.LOGITS]
    if shape[Shape.ROUTER] == Router.SIGMOID_GROUPS:
        product(tag, layer[Layer.ROUTER], places[Place.NORMED], logits, len(rows), count, hidden)
    else:
        linear(
            tag,
            places[Place.DESK],
            layer[Layer.ROUTER],
            int64(0),
            places[Place.NORMED],
            logits,
            len(rows),
            count,
            hidden,
        )
    for r in range(len(rows)):
        scores, weights = logits + 4 * r * count, places[Place.WEIGHTS] + 4 * r * top_k
        if rows[r, Token.LOCAL] != 0:
            for e in range(count):
                if experts[e, 0] == 0:
                    write(F32_TAG, scores, e, _NEVER)
        if shape[Shape.ROUTER] == Router.SIGMOID_GROUPS:
            found = _sigmoid_groups(shape, layer, places, scores, weights, chosen[r])
        elif shape[Shape.ROUTER] == Router.SPARSEMIXER:
            found = _sparsemixer(tag, numbers[Number.JITTER], count, top_k, places, scores, weights, chosen[r])
        else:
            found = _softmax(count, top_k, scores, weights, chosen[r])
        for i in range(found, top_k):
            chosen[r, i] = -1
            write(F32_TAG, weights, i, np.float32(0))
        if shape[Shape.NORMALISE]:
            total = _TINY if shape[Shape.ROUTER] == Router.SIGMOID_GROUPS else np.float32(0)
            for i in range(found):
                total += read(F32_TAG, weights, i)
            for i in range(found):
                write(F32_TAG, weights, i, read(F32_TAG, weights, i) / total)
        for i in range(found):
            value = read(F32_TAG, weights, i) * numbers[Number.ROUTED_SCALE]
            write(F32_TAG, weights, i, rounded(tag, value) if shape[Shape.ROUND_WEIGHTS] else value)
        _ascend(weights, chosen[r], found)


@jit
def _softmax(experts: int, top_k: int, logits: int, weights: int, chosen: Ints) -> int:
    highest = read(F32_TAG, logits, best_of(logits, 0, experts))
    total = np.float32(0)
    for e in range(experts):
        score = read(F32_TAG, logits, e)
        if score > _NEVER:
            value = exp(score - highest)
            total += value
            write(F32_TAG, logits, e, value)
    for i in range(top_k):
        best = best_of(logits, 0, experts)
        if not read(F32_TAG, logits, best) > _NEVER:
            return i
        chosen[i] = best
        write(F32_TAG, weights, i, read(F32_TAG, logits, best) / total)
        write(F32_TAG, logits, best, _NEVER)
    return top_k


@jit
def _sparsemixer(
    tag: Tag, jitter: np.float32, experts: int, top_k: int, places: Ints, logits: int, weights: int, chosen: Ints
) -> int:
    # Both thresholds are measured on all scores, as in the original; only the softmax leaves out the first.
    left = places[Place.WORK]
    for e in range(experts):
        write(F32_TAG, left, e, read(F32_TAG, logits, e))
    for i in range(top_k):
        best = best_of(left, 0, experts)
        highest = read(F32_TAG, left, best)
        if not highest > _NEVER:
            return i
        total = np.float32(0)
        for e in range(experts):
            score = read(F32_TAG, logits, e)
            factor = max(abs(score), highest)
            apart = rounded(tag, rounded(tag, highest - score) / factor)
            if read(F32_TAG, left, e) > _NEVER and not apart > np.float32(2) * jitter:
                total += exp(score - highest)
        chosen[i] = best
        write(F32_TAG, weights, i, rounded(tag, np.float32(1) / total))
        write(F32_TAG, left, best, _NEVER)
    return top_k


@jit
def _sigmoid_groups(shape: Ints, layer: Ints, places: Ints, logits: int, weights: int, chosen: Ints) -> int:
    experts, top_k, correction = layer[Layer.EXPERTS], layer[Layer.TOP_K], layer[Layer.CORRECTION]
    groups, top_groups = shape[Shape.GROUPS], shape[Shape.TOP_GROUPS]
    scores, size = places[Place.WORK], experts // groups
    for e in range(experts):
        score = read(F32_TAG, logits, e)
        value = sigmoid(score)
        write(F32_TAG, logits, e, value)
        write(F32_TAG, scores, e, value + read(F32_TAG, correction, e) if score > _NEVER else _NEVER)
    # A group counts as much as its two best; one number a group.
    ranks = scores + 4 * experts
    for g in range(groups):
        first = best_of(scores, g * size, (g + 1) * size)
        second = _NEVER
        for e in range(g * size, (g + 1) * size):
            if e != first and read(F32_TAG, scores, e) > second:
                second = read(F32_TAG, scores, e)
        write(F32_TAG, ranks, g, read(F32_TAG, scores, first) + second)
    for _ in range(groups - top_groups):
        worst = 0
        for g in range(1, groups):
            rank, lowest = read(F32_TAG, ranks, g), read(F32_TAG, ranks, worst)
            # Those already left out rank as infinite here; of level ones the last goes.
            if rank <= lowest:
                worst = g
        write(F32_TAG, ranks, worst, np.float32(np.inf))
        for e in range(worst * size, (worst + 1) * size):
            write(F32_TAG, scores, e, _NEVER)
    for i in range(top_k):
        best = best_of(scores, 0, experts)
        if not read(F32_TAG, scores, best) > _NEVER:
            return i
        chosen[i] = best
        write(F32_TAG, weights, i, read(F32_TAG, logits, best))
        write(F32_TAG, scores, best, _NEVER)
    return int(top_k)


@jit
def _ascend(weights: int, chosen: Ints, n: int) -> None:
    for i in range(1, n):
        expert, weight, at = chosen[i], read(F32_TAG, weights, i), i
        while at > 0 and chosen[at - 1] > expert:
            chosen[at] = chosen[at - 1]
            write(F32_TAG, weights, at, read(F32_TAG, weights, at - 1))
            at -= 1
        chosen[at] = expert
        write(F32_TAG, weights, at, weight)
