"""The compiled step: layers one after the other for a batch of rows, until one needs an expert that is not here.

A layer has three parts. *Route*: norm, attention, norm, router. *Compute*: the chosen experts that are resident, each
once for all the rows that chose it. *Join*: the weighted sum in ascending order of experts, what every token takes
besides, the residual. `run` goes from part to part and from layer to layer. At a layer that lacks an expert it asks the
mesh and waits for the answers (`meshmoe.engine.rounds`). Where it cannot, it returns after the route, so that the
caller can send for it before `compute_resident`, and goes on at the join once the outputs of the others stand at their
places. And it returns between two layers or two experts when the slice is over (`kernels.limit`).

Results are rounded to the model's dtype where transformers' eager code rounds them; in between all is float32. Every
sum of a row has an order of its own (see `kernels.dots`), so a row's bits are the same in any batch.
"""

from __future__ import annotations

import numpy as np

from meshmoe.engine.kernels.arithmetic import gate, sigmoid
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.crew import linear
from meshmoe.engine.kernels.dots import dot
from meshmoe.engine.kernels.expert import expert_rows
from meshmoe.engine.kernels.primitives import F32_TAG, Tag, increment, int64, read, rounded, size_of, write
from meshmoe.engine.kernels.stopping import due
from meshmoe.engine.lean.attention import Floats, Ints, attend, normalise, project, remember
from meshmoe.engine.lean.routers import route
from meshmoe.engine.lean.tables import End, Layer, Number, Place, Shape, Token
from meshmoe.engine.rounds.answers import end as end_round
from meshmoe.engine.rounds.asking import ask
from meshmoe.engine.rounds.attending import DONE, NOTHING, look, wait
from meshmoe.engine.rounds.memory import clock_ns
from meshmoe.engine.rounds.sending import send_due
from meshmoe.engine.rounds.tables import Office, Posts

_PATIENCE_NS = 1_000_000_000
"""Of a wait for peers in one piece."""


@jit
def run(
    tag: Tag,
    shape: Ints,
    numbers: Floats,
    layers: Ints,
    places: Ints,
    experts: Ints,
    rows: Ints,
    counts: Ints,
    chosen: Ints,
    sorting: Ints,
    begin: int,
    end: int,
    joining: bool,
    limit: int,
    posts: Posts,
    own: int,
    requests: Ints,
    tally: Ints,
    ends: Ints,
    logits: int,
) -> int:
    """Compute layers from ``begin`` to before ``end``, or until the slice is over.

    Before the first layer the rows' tokens are embedded.

    Args:
        tag: Dtype of the model.
        shape: See `tables`.
        numbers: See `tables`.
        layers: See `tables`.
        places: See `tables`.
        experts: ``[MoE layers, experts, 2]``: addresses of gate-and-up and down projection, 0 for what is not resident.
        rows: See `tables`. Rows of one sequence stand in the order of their positions.
        counts: ``[kinds, MoE layers]``: addresses of the int64 counters of activations.
        chosen: ``[MoE layers, rows, k]``; gets the experts of each layer.
        sorting: ``[experts + 1 + rows * k]``, to work with.
        begin: First layer.
        end: Layer to stop before.
        joining: Whether the first layer's experts are all computed and it only has to be joined.
        limit: Of the slice: `SliceLimit.address`, or 0.
        posts: Of the thread.
        own: The batch's round, a row of ``post.rounds``; -1 for none.
        requests: For each row, whose it is: a row of ``tally``.
        tally: See `rounds.tables.Tally`.
        ends: See `tables`.
        logits: Address of ``[n, V]`` float32: gets the logits of the rows that want them, behind the last layer of
            all. 0 where somebody else sees to that.

    Returns:
        The layer to go on with, ``end`` if all are computed. Or, negative, one that has been routed, because it lacks
        experts or the slice is over: ``-1 - layer - first * len(layers)``, where `compute_resident` has to go on with
        expert ``first``, which may be one behind the last. Its round may be under way then.
    """
    desk, post = places[Place.DESK], posts[0]
    if begin == 0 and not joining:
        embed(tag, ends[End.EMBEDDING], rows, places[Place.X], shape[Shape.HIDDEN])
    for at in range(begin, end):
        if at > begin and due(limit) and not look(tag, desk, posts, experts, limit):
            return at
        if post.numbers[Office.KEPT] != 0:
            send_due(post, clock_ns(post.scratch.ctypes.data))
        layer = layers[at]
        moe = layer[Layer.MOE]
        if not joining:
            _mix_tokens(tag, shape, numbers, layer, places, rows, at)
            if moe >= 0:
                route(tag, shape, numbers, layer, places, experts[moe], rows, chosen[moe])
                missing = False
                for r in range(len(rows)):
                    kind = rows[r, Token.COUNTS]
                    for i in range(layer[Layer.TOP_K]):
                        expert = chosen[moe, r, i]
                        if expert >= 0:
                            missing |= experts[moe, expert, 0] == 0
                            if kind >= 0:
                                increment(counts[kind, moe], expert)
                if missing and not ask(tag, shape, layer, places, experts[moe], rows, chosen[moe], post, own):
                    return -1 - at
                first = compute_resident(
                    tag,
                    shape,
                    layer,
                    places,
                    experts[moe],
                    chosen[moe],
                    sorting,
                    len(rows),
                    int64(0),
                    limit,
                )
                if first < layer[Layer.EXPERTS]:
                    return -1 - at - first * len(layers)
                if missing:
                    patience_ns = int64(_PATIENCE_NS) if post.numbers[Office.MAY_WAIT] != 0 else int64(0)
                    found = NOTHING
                    while found == NOTHING:
                        found = wait(tag, desk, posts, experts, limit, own, patience_ns)
                        if patience_ns == 0:
                            break
                    if found != DONE:
                        return -1 - at - first * len(layers)
                    end_round(posts, own, requests, tally)
        joining = False
        _join(tag, shape, layer, places, len(rows))
    if logits != 0:
        wanted = finish(tag, shape, ends, numbers[Number.NORM_EPS], places, rows)
        if wanted > 0:
            x, hidden = places[Place.GATHERED], shape[Shape.HIDDEN]
            linear(tag, desk, ends[End.HEAD], ends[End.HEAD_BIAS], x, logits, wanted, ends[End.VOCABULARY], hidden)
            _find_best(rows, logits, ends[End.VOCABULARY])
    return int(end)


@jit
def _mix_tokens(tag: Tag, shape: Ints, numbers: Floats, layer: Ints, places: Ints, rows: Ints, at: int) -> None:
    """Attention with its norm and residual, and the norm after it."""
    hidden, count, kind = shape[Shape.HIDDEN], len(rows), shape[Shape.NORM]
    eps, x, normed, total = numbers[Number.NORM_EPS], places[Place.X], places[Place.NORMED], places[Place.SUM]
    wide = hidden * size_of(tag)
    for r in range(count):
        weight, bias = layer[Layer.IN_NORM], layer[Layer.IN_NORM_BIAS]
        normalise(tag, tag, kind, weight, bias, eps, x + 4 * r * hidden, normed + r * wide, hidden)
    project(tag, shape, numbers, layer, places, rows)
    remember(tag, shape, places, rows, at)
    for r in range(count):
        attend(tag, shape, numbers, places, rows, r, at)
    width = shape[Shape.HEADS] * shape[Shape.HEAD_DIM]
    linear(
        tag,
        places[Place.DESK],
        layer[Layer.O],
        layer[Layer.O_BIAS],
        places[Place.ATTENDED],
        total,
        count,
        hidden,
        width,
    )
    for i in range(count * hidden):
        write(F32_TAG, x, i, rounded(tag, read(F32_TAG, x, i) + read(F32_TAG, total, i)))
    for r in range(count):
        weight, bias = layer[Layer.POST_NORM], layer[Layer.POST_NORM_BIAS]
        normalise(tag, tag, kind, weight, bias, eps, x + 4 * r * hidden, normed + r * wide, hidden)


@jit
def compute_resident(
    tag: Tag,
    shape: Ints,
    layer: Ints,
    places: Ints,
    experts: Ints,
    chosen: Ints,
    sorting: Ints,
    rows: int,
    begin: int,
    limit: int,
) -> int:
    """Compute those of a layer's chosen experts that are resident, from ``begin`` on, one at least.

    ``experts`` is ``[experts, 2]``, ``chosen`` ``[rows, k]``; ``sorting`` and ``limit`` as in `run`.

    Returns:
        The expert to go on with because the slice is over; the number of experts if all are computed.
    """
    end, computed_any = layer[Layer.EXPERTS], False
    hidden, top_k, width = shape[Shape.HIDDEN], layer[Layer.TOP_K], layer[Layer.WIDTH]
    normed, outputs, inner = places[Place.NORMED], places[Place.OUTPUTS], places[Place.INNER]
    desk = places[Place.DESK]
    if rows == 1:
        for i in range(top_k):
            e = chosen[0, i]
            if e >= begin and experts[e, 0] != 0:
                if computed_any and due(limit):
                    return int(e)
                computed_any = True
                y = outputs + 4 * i * hidden
                expert_rows(tag, desk, experts[e, 0], experts[e, 1], normed, y, inner, 1, hidden, width)
        return int(end)
    # Sort the pairs by expert: first how many each has, then where its first stands, then the pairs.
    pairs = sorting[end + 1 :]
    for e in range(begin, end + 1):
        sorting[e] = 0
    for r in range(rows):
        for i in range(top_k):
            e = chosen[r, i]
            if e >= begin and experts[e, 0] != 0:
                sorting[e + 1] += 1
    for e in range(begin, end):
        sorting[e + 1] += sorting[e]
    for r in range(rows):
        for i in range(top_k):
            e = chosen[r, i]
            if e >= begin and experts[e, 0] != 0:
                pairs[sorting[e]] = r * top_k + i
                sorting[e] += 1
    # Now each expert's entry says where its last pair stands, and the one before where its first does.
    gathered, computed, first = places[Place.GATHERED], places[Place.COMPUTED], 0
    for e in range(begin, end):
        count = sorting[e] - first
        if count == 0:
            continue
        if computed_any and due(limit):
            return int(e)
        computed_any = True
        for m in range(count):
            r = pairs[first + m] // top_k
            for n in range(hidden):
                write(tag, gathered, m * hidden + n, read(tag, normed, r * hidden + n))
        expert_rows(
            tag, places[Place.DESK], experts[e, 0], experts[e, 1], gathered, computed, inner, count, hidden, width
        )
        for m in range(count):
            for n in range(hidden):
                write(F32_TAG, outputs, pairs[first + m] * hidden + n, read(F32_TAG, computed, m * hidden + n))
        first += count
    return int(end)


@jit
def _join(tag: Tag, shape: Ints, layer: Ints, places: Ints, rows: int) -> None:
    """Sum the experts' outputs, add what every token takes, and the residual."""
    hidden, x, total, dense = shape[Shape.HIDDEN], places[Place.X], places[Place.SUM], places[Place.COMPUTED]
    moe, top_k = layer[Layer.MOE] >= 0, layer[Layer.TOP_K]
    if layer[Layer.DENSE_WIDTH] > 0:
        _dense(tag, hidden, layer, places, rows)
    for r in range(rows):
        here = total + 4 * r * hidden
        for n in range(hidden):
            write(F32_TAG, here, n, np.float32(0))
        for i in range(top_k):
            weight = read(F32_TAG, places[Place.WEIGHTS], r * top_k + i)
            if weight == np.float32(0):
                continue  # perhaps not computed: there were fewer experts to choose from than k
            outputs = places[Place.OUTPUTS] + 4 * (r * top_k + i) * hidden
            for n in range(hidden):
                part = rounded(tag, read(F32_TAG, outputs, n) * weight)
                write(F32_TAG, here, n, rounded(tag, read(F32_TAG, here, n) + part))
        if layer[Layer.DENSE_WIDTH] > 0:
            share = np.float32(1)
            if layer[Layer.DENSE_MIX] != 0:
                normed = places[Place.NORMED] + r * hidden * size_of(tag)
                share = rounded(tag, dot(tag, layer[Layer.DENSE_MIX], normed, hidden))
                share = rounded(tag, sigmoid(share))
            for n in range(hidden):
                part = rounded(tag, share * read(F32_TAG, dense, r * hidden + n))
                write(F32_TAG, here, n, rounded(tag, read(F32_TAG, here, n) + part) if moe else part)
        for n in range(hidden):
            at = r * hidden + n
            write(F32_TAG, x, at, rounded(tag, read(F32_TAG, x, at) + read(F32_TAG, here, n)))


@jit
def _dense(tag: Tag, hidden: int, layer: Ints, places: Ints, rows: int) -> None:
    """The block that every token takes."""
    width, gates = layer[Layer.DENSE_WIDTH], places[Place.INNER]
    ups = gates + 4 * rows * width
    gated = ups + 4 * rows * width
    linear(tag, places[Place.DESK], layer[Layer.DENSE_GATE], int64(0), places[Place.NORMED], gates, rows, width, hidden)
    linear(tag, places[Place.DESK], layer[Layer.DENSE_UP], int64(0), places[Place.NORMED], ups, rows, width, hidden)
    gate(tag, gates, ups, gated, rows * width)
    linear(
        tag, places[Place.DESK], layer[Layer.DENSE_DOWN], int64(0), gated, places[Place.COMPUTED], rows, hidden, width
    )


@jit
def finish(tag: Tag, shape: Ints, ends: Ints, eps: np.float32, places: Ints, rows: Ints) -> int:
    """The last norm of the rows whose logits are wanted, one after the other to ``GATHERED``; returns how many."""
    hidden, count = shape[Shape.HIDDEN], 0
    for r in range(len(rows)):
        if rows[r, Token.LOGITS] != 0:
            x, y = places[Place.X] + 4 * r * hidden, places[Place.GATHERED] + count * hidden * size_of(tag)
            normalise(tag, tag, shape[Shape.NORM], ends[End.NORM], ends[End.NORM_BIAS], eps, x, y, hidden)
            count += 1
    return count


@jit
def _find_best(rows: Ints, logits: int, vocabulary: int) -> None:
    """Fill in ``Token.BEST``."""
    for r in range(len(rows)):
        if rows[r, Token.LOGITS] != 0:
            best, highest, total = int64(0), read(F32_TAG, logits, 0), np.float32(0)
            for i in range(vocabulary):
                value = read(F32_TAG, logits, i)
                total += value - value  # no number if one of them is none
                if value > highest:
                    best, highest = int64(i), value
            rows[r, Token.BEST] = best if total == np.float32(0) else int64(-1)
            logits += 4 * vocabulary


@jit
def embed(tag: Tag, table: int, rows: Ints, x: int, hidden: int) -> None:
    """Rows of the embedding table, ``[R, H]`` float32 to ``x``."""
    for r in range(len(rows)):
        row = table + rows[r, Token.TOKEN] * hidden * size_of(tag)
        for i in range(hidden):
            write(F32_TAG, x, r * hidden + i, read(tag, row, i))
