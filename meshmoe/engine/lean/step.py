"""The compiled step: layers one after the other, until one of them needs an expert that is not here.

A layer has three parts. *Route*: norm, attention, norm, router. *Compute*: the chosen experts that are resident.
*Join*: the weighted sum in ascending order of experts, what every token takes besides, the residual. `run` goes from
part to part and from layer to layer. It returns after the route of a layer that lacks an expert, so that the caller can
send for it before `compute_resident`, and goes on at the join once the outputs of the others stand at their places.

Results are rounded to the model's dtype where transformers' eager code rounds them; in between all is float32.
"""

from __future__ import annotations

import numpy as np

from meshmoe.engine.kernels.arithmetic import gate, linear, sigmoid
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.expert import expert_rows
from meshmoe.engine.kernels.primitives import F32_TAG, Tag, dot, increment, read, rounded, size_of, write
from meshmoe.engine.lean.attention import Floats, Ints, attend, normalise, project
from meshmoe.engine.lean.routers import route
from meshmoe.engine.lean.tables import Layer, Number, Place, Shape


@jit
def run(
    tag: Tag,
    shape: Ints,
    numbers: Floats,
    layers: Ints,
    places: Ints,
    experts: Ints,
    cache: Ints,
    counts: Ints,
    chosen: Ints,
    position: int,
    begin: int,
    end: int,
    joining: bool,
) -> int:
    """Compute layers from ``begin`` to before ``end``.

    Args:
        tag: Dtype of the model.
        shape: See `tables`.
        numbers: See `tables`.
        layers: See `tables`.
        places: See `tables`.
        experts: ``[MoE layers, experts, 2]``: addresses of gate-and-up and down projection, 0 for what is not resident.
        cache: ``[layers, 3]``: addresses of keys and of values, and the tokens that they have room for.
        counts: ``[MoE layers]``: addresses of the int64 counters of activations.
        chosen: ``[MoE layers, k]``; gets the experts of each layer.
        position: Of the token.
        begin: First layer.
        end: Layer to stop before.
        joining: Whether the first layer's experts are all computed and it only has to be joined.

    Returns:
        ``end``; or the layer that has been routed and lacks experts, as ``-1 - layer``.
    """
    for at in range(begin, end):
        layer = layers[at]
        moe = layer[Layer.MOE]
        if not joining:
            _mix_tokens(tag, shape, numbers, layer, places, cache[at], position)
            if moe >= 0:
                route(tag, shape, numbers, layer, places, chosen[moe])
                missing = False
                for i in range(layer[Layer.TOP_K]):
                    increment(counts[moe], chosen[moe, i])
                    missing |= experts[moe, chosen[moe, i], 0] == 0
                if missing:
                    return -1 - at
                compute_resident(tag, shape, layer, places, experts[moe], chosen[moe])
        joining = False
        _join(tag, shape, layer, places)
    return end


@jit
def _mix_tokens(tag: Tag, shape: Ints, numbers: Floats, layer: Ints, places: Ints, cache: Ints, position: int) -> None:
    """Attention with its norm and residual, and the norm after it."""
    hidden, x, normed, kind = shape[Shape.HIDDEN], places[Place.X], places[Place.NORMED], shape[Shape.NORM]
    eps, total = numbers[Number.NORM_EPS], places[Place.SUM]
    normalise(tag, kind, layer[Layer.IN_NORM], layer[Layer.IN_NORM_BIAS], eps, x, normed, hidden)
    project(tag, shape, numbers, layer, places)
    attend(tag, shape, numbers, places, cache[0], cache[1], cache[2], position)
    width = shape[Shape.HEADS] * shape[Shape.HEAD_DIM]
    linear(tag, layer[Layer.O], layer[Layer.O_BIAS], places[Place.ATTENDED], total, 1, hidden, width)
    for i in range(hidden):
        write(F32_TAG, x, i, rounded(tag, read(F32_TAG, x, i) + read(F32_TAG, total, i)))
    normalise(tag, kind, layer[Layer.POST_NORM], layer[Layer.POST_NORM_BIAS], eps, x, normed, hidden)


@jit
def compute_resident(tag: Tag, shape: Ints, layer: Ints, places: Ints, experts: Ints, chosen: Ints) -> None:
    """Compute those of a layer's chosen experts that are resident; ``experts`` is ``[experts, 2]``."""
    hidden, outputs = shape[Shape.HIDDEN], places[Place.OUTPUTS]
    for i in range(layer[Layer.TOP_K]):
        gate_up, down = experts[chosen[i], 0], experts[chosen[i], 1]
        if gate_up != 0:
            y = outputs + 4 * i * hidden
            expert_rows(tag, gate_up, down, places[Place.NORMED], y, places[Place.INNER], 1, hidden, layer[Layer.WIDTH])


@jit
def _join(tag: Tag, shape: Ints, layer: Ints, places: Ints) -> None:
    """Sum the experts' outputs, add what every token takes, and the residual."""
    hidden, x, total, outputs = shape[Shape.HIDDEN], places[Place.X], places[Place.SUM], places[Place.OUTPUTS]
    moe = layer[Layer.MOE] >= 0
    if moe:
        for n in range(hidden):
            write(F32_TAG, total, n, np.float32(0))
        for i in range(layer[Layer.TOP_K]):
            weight = read(F32_TAG, places[Place.WEIGHTS], i)
            for n in range(hidden):
                part = rounded(tag, read(F32_TAG, outputs, i * hidden + n) * weight)
                write(F32_TAG, total, n, rounded(tag, read(F32_TAG, total, n) + part))
    if layer[Layer.DENSE_WIDTH] > 0:
        _dense(tag, hidden, layer, places)
        share = np.float32(1)
        if layer[Layer.DENSE_MIX] != 0:
            share = rounded(tag, dot(tag, layer[Layer.DENSE_MIX], places[Place.NORMED], hidden))
            share = rounded(tag, sigmoid(share))
        for n in range(hidden):
            part = rounded(tag, share * read(F32_TAG, outputs, n))
            write(F32_TAG, total, n, rounded(tag, read(F32_TAG, total, n) + part) if moe else part)
    for n in range(hidden):
        write(F32_TAG, x, n, rounded(tag, read(F32_TAG, x, n) + read(F32_TAG, total, n)))


@jit
def _dense(tag: Tag, hidden: int, layer: Ints, places: Ints) -> None:
    """The block that every token takes; the result goes to the first of the outputs."""
    width, gates = layer[Layer.DENSE_WIDTH], places[Place.INNER]
    ups = gates + 4 * width
    linear(tag, layer[Layer.DENSE_GATE], 0, places[Place.NORMED], gates, 1, width, hidden)
    linear(tag, layer[Layer.DENSE_UP], 0, places[Place.NORMED], ups, 1, width, hidden)
    gate(tag, gates, ups, gates, width)
    linear(tag, layer[Layer.DENSE_DOWN], 0, gates, places[Place.OUTPUTS], 1, hidden, width)


@jit
def embed(tag: Tag, table: int, token: int, x: int, hidden: int) -> None:
    """A token's row of the embedding table, ``[H]`` float32 to ``x``."""
    row = table + token * hidden * size_of(tag)
    for i in range(hidden):
        write(F32_TAG, x, i, read(tag, row, i))
