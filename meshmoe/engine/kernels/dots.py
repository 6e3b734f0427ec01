"""Sums of products, whose order is written down.

Every sum of products has one order. Its n products are dealt to 2 vectors of 16 running sums, each added with one
rounding (fused multiply-add). In float32 and float16, product i goes to sum ``i % 32``; in bfloat16 the products go in
pairs, the pair i to sum ``i % 32`` with the second of the pair first, because some CPUs have an instruction for that
(AVX512-BF16; elsewhere two multiply-adds do the same, but for numbers below 1.2e-38, which the instruction takes for
0). What is left of n after whole rounds goes on in the first vector, 16 sums and (bfloat16) then 8 at a time. Then the
two vectors are added, then halves of the vector onto halves, and the last ``n % 16`` products follow one by one. The
intermediate code says just that, and without ``fastmath`` the compiler must keep to it. So the result is the same
inlined or not, for one row or for several that share the reading of the weights, and on machines whose vectors have
another length.

How weights are read for one row, for few and for many: docs/decisions/kernels.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from meshmoe.engine.kernels.primitives import (
    F32,
    I32,
    I64,
    Tag,
    constant,
    fill,
    fused,
    load_wide,
    pointer_to,
    stored,
)

LANES = 16
_SUMS = 2
_AHEAD_BYTES, _SHORT_AHEAD_BYTES = 8192, 4096
_LINE_BYTES = 64
_MIXED_TOGETHER = 4
_BYTE_POINTER = ir.IntType(8).as_pointer()


class _Bfloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types; and not this one, which only one instruction needs
    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


def _prefetch(builder: Any, pointer: Any) -> None:
    signature = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    arguments = [ir.Constant(I32, number) for number in (0, 3, 1)]  # to read, keep in all caches, data
    builder.call(function, [builder.bitcast(pointer, _BYTE_POINTER), *arguments])


def halved_sums(builder: Any, vectors: list[Any]) -> Any:
    """A vector of each vector's sum, halves onto halves; of several at once, which takes a third of the instructions.

    Halves of two vectors stand in one: a step then adds for both, and later ones for four and for eight. Which numbers
    are added to which, and when, is the same as for one vector alone. There are 1, 2, 4 or 8 vectors.
    """
    part = vectors[0].type.count  # of a vector: numbers that belong to one sum
    while part > 1:
        half, pairs = part // 2, [vectors[at : at + 2] for at in range(0, len(vectors), 2)]
        folded = []
        for pair in pairs:
            first, second = pair if len(pair) == 2 else (pair[0], ir.Constant(pair[0].type, ir.Undefined))
            starts = range(0, len(pair) * first.type.count, part)
            halves = [[start + offset + lane for start in starts for lane in range(half)] for offset in (0, half)]
            low, high = (
                builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))
                for lanes in halves
            )
            folded.append(builder.fadd(low, high))
        vectors, part = folded, half
    return vectors[0]


def _has(feature: str) -> bool:
    """Whether the CPU that numba compiles for has a feature, by LLVM's name."""
    asked = config.CPU_FEATURES
    features = binding.get_host_cpu_features().flatten() if asked is None else asked
    return f"+{feature}" in features.split(",")


class _Sums:
    """Running sums of one (weight row, activation row) pair."""

    def __init__(self, builder: Any) -> None:
        vector = ir.VectorType(F32, LANES)
        self.vectors = [cgutils.alloca_once(builder, vector) for _ in range(_SUMS)]
        for place in self.vectors:
            builder.store(fill(vector, 0), place)


def _load_pairs(builder: Any, pointer: Any, at: Any, lanes: int) -> Any:
    """Pairs of bfloat16 as int32, the second in the high half; 16 of them, the rest zeros where ``lanes`` is less."""
    place = builder.gep(pointer, [at])
    pairs = ir.VectorType(I32, lanes)
    loaded = builder.load(builder.bitcast(place, pairs.as_pointer()), align=2)
    if lanes == LANES:
        return loaded
    order = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))
    return builder.shuffle_vector(loaded, fill(pairs, 0), order)


def _add_pairs(builder: Any, w: Any, x: Any, total: Any) -> Any:
    if _has("avx512bf16"):
        numbers = ir.VectorType(_Bfloat(), 2 * LANES)
        signature = ir.FunctionType(total.type, [total.type, numbers, numbers])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.x86.avx512bf16.dpbf16ps.512")
        return builder.call(function, [total, builder.bitcast(w, numbers), builder.bitcast(x, numbers)])
    high, up = fill(w.type, 0xFFFF0000), fill(w.type, 16)
    seconds = [builder.bitcast(builder.and_(pairs, high), total.type) for pairs in (w, x)]
    firsts = [builder.bitcast(builder.shl(pairs, up), total.type) for pairs in (w, x)]
    return fused(builder, firsts[0], firsts[1], fused(builder, seconds[0], seconds[1], total))


def emit_vectors(builder: Any, tag: Any, w: list[Any], x: list[Any], n: Any, ahead: int) -> tuple[list[Any], Any]:
    """Code for a vector of running sums of each row of ``w`` (pointers) with each row of ``x``; w's rows outermost.

    Memory is asked for what stands ``ahead`` bytes behind, unless it is 0. Also returned is how many of the ``n``
    products they are the sums of; what is left does not fill a vector.
    """
    sums = [[_Sums(builder) for _ in x] for _ in w]
    paired = tag == types.uint16
    width = 2 * LANES if paired else LANES

    def load(row: Any, at: Any, lanes: int) -> Any:
        return _load_pairs(builder, row, at, lanes) if paired else load_wide(builder, tag, row, at, lanes)

    def add(at: Any, vector: int, lanes: int = LANES) -> None:
        activations = [load(row, at, lanes) for row in x]
        for weights, row_sums in zip(w, sums, strict=True):
            loaded = load(weights, at, lanes)
            for activation, pair in zip(activations, row_sums, strict=True):
                place = pair.vectors[vector]
                total = builder.load(place)
                added = (_add_pairs if paired else fused)(builder, loaded, activation, total)
                builder.store(added, place)

    step, one = constant(width * _SUMS), constant(width)
    whole = builder.mul(builder.udiv(n, step), step)
    with cgutils.for_range_slice(builder, constant(0), whole, step, I64) as (at, _):
        size = stored(tag)[1]
        for offset in range(0, _SUMS * width * size, _LINE_BYTES) if ahead else ():
            for weights in w:
                place = builder.add(at, constant((ahead + offset) // size))
                _prefetch(builder, builder.gep(weights, [place]))
        for vector in range(_SUMS):
            add(builder.add(at, constant(vector * width)), vector)
    vectors = builder.mul(builder.udiv(n, one), one)
    with cgutils.for_range_slice(builder, whole, vectors, one, I64) as (at, _):
        add(at, 0)
    if paired:
        whole, half = vectors, constant(width // 2)
        vectors = builder.mul(builder.udiv(n, half), half)
        with cgutils.for_range_slice(builder, whole, vectors, half, I64) as (at, _):
            add(at, 0, LANES // 2)
    every = [pair for row_sums in sums for pair in row_sums]
    return [builder.fadd(*(builder.load(place) for place in pair.vectors)) for pair in every], vectors


def _emit_dots(builder: Any, tag: Any, w: list[Any], x: list[Any], n: Any) -> list[Any]:
    """Code for all sums of products of the rows ``w`` (pointers) with the rows ``x``; w's rows outermost."""
    added, summed = emit_vectors(builder, tag, w, x, n, ahead=0)
    halved = halved_sums(builder, added)
    totals = [cgutils.alloca_once(builder, F32) for _ in added]
    for lane, total in enumerate(totals):
        builder.store(builder.extract_element(halved, ir.Constant(I32, lane)), total)
    with cgutils.for_range_slice(builder, summed, n, constant(1), I64) as (at, _):
        activations = [load_wide(builder, tag, row, at, 1) for row in x]
        places = iter(totals)
        for weights in w:
            loaded = load_wide(builder, tag, weights, at, 1)
            for activation in activations:
                total = next(places)
                builder.store(fused(builder, loaded, activation, builder.load(total)), total)
    return [builder.load(total) for total in totals]


def _rows(builder: Any, tag: Any, address: Any, stride: Any, count: int) -> list[Any]:
    size = constant(stored(tag)[1])
    steps = [builder.mul(builder.mul(stride, size), constant(row)) for row in range(count)]
    return [pointer_to(builder, tag, builder.add(address, step)) for step in steps]


def _make_dots(w_rows: int, x_rows: int) -> Any:
    def dots(_context: Any, tag: Any, *_: Any) -> Any:
        signature = types.void(tag, *[types.int64] * 8)

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            _tag, w, w_stride, x, x_stride, y, y_w_stride, y_x_stride, n = arguments
            w_pointers = _rows(builder, tag, w, w_stride, w_rows)
            x_pointers = _rows(builder, tag, x, x_stride, x_rows)
            results = iter(_emit_dots(builder, tag, w_pointers, x_pointers, n))
            out = pointer_to(builder, types.float32, y)
            for i in range(w_rows):
                for j in range(x_rows):
                    place = builder.add(builder.mul(y_w_stride, constant(i)), builder.mul(y_x_stride, constant(j)))
                    builder.store(next(results), builder.gep(out, [place]))
            return context.get_dummy_value()

        return signature, generate

    def intrinsic_dots(  # numba wants the arguments by name
        context: Any, tag: Any, w: Any, ws: Any, x: Any, xs: Any, y: Any, yw: Any, yx: Any, n: Any
    ) -> Any:
        return dots(context, tag, w, ws, x, xs, y, yw, yx, n)

    return intrinsic(intrinsic_dots)


Dots = Callable[[Tag, int, int, int, int, int, int, int, int], None]
"""``(tag, w, w_stride, x, x_stride, y, y_w_stride, y_x_stride, n)``: rows of n weights at ``w``, rows of n activations
in the same dtype at ``x``, results to float32 at ``y``; strides in numbers, not bytes."""

dots_1x1: Dots = cast(Dots, _make_dots(1, 1))
dots_2x2: Dots = cast(Dots, _make_dots(2, 2))
dots_2x4: Dots = cast(Dots, _make_dots(2, 4))

LONG_VECTORS = _has("avx512f")
"""Whether a vector of 16 is one register here and there are 32 of them: then more rows are computed at once."""

READS_APART = LONG_VECTORS and not _has("avx512bf16")
"""Whether memory comes faster from several places at once (`apart`): measured on one kind of CPU, which has these."""

COLUMN = 8
"""Rows of weights that the functions `dots_column1` to `dots_column4` take."""


def _make_column(x_rows: int, w_rows: int = 1) -> Any:
    def column(_context: Any, tag: Any, *_: Any) -> Any:
        signature = types.void(tag, *[types.int64] * 7)
        # Of long rows, where memory is what takes the time, the processor reads ahead well enough by itself; where
        # there is more to do for a line, it comes to know too late what it will need.
        much = x_rows > 1 or tag == types.int16 or (tag == types.uint16 and not _has("avx512bf16"))
        ahead = _SHORT_AHEAD_BYTES if w_rows > 1 else _AHEAD_BYTES if much else 0

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            _tag, w, w_stride, x, x_stride, y, y_stride, n = arguments
            activations, out = _rows(builder, tag, x, x_stride, x_rows), pointer_to(builder, types.float32, y)
            stride, count = builder.mul(w_stride, constant(stored(tag)[1])), constant(COLUMN)
            kept = cgutils.alloca_once(builder, ir.VectorType(F32, LANES), x_rows * COLUMN)

            def weights(number: Any) -> Any:
                return pointer_to(builder, tag, builder.add(w, builder.mul(stride, number)))

            with cgutils.for_range_slice(builder, constant(0), count, constant(w_rows), I64) as (at, _):
                together = [weights(builder.add(at, constant(number))) for number in range(w_rows)]
                added, _ = emit_vectors(builder, tag, together, activations, n, ahead)
                for number, vector in enumerate(added):
                    place = constant(number // x_rows + number % x_rows * COLUMN)
                    builder.store(vector, builder.gep(kept, [builder.add(at, place)]))
            for row in range(x_rows):
                places = [builder.gep(kept, [constant(row * COLUMN + number)]) for number in range(COLUMN)]
                halved = halved_sums(builder, [builder.load(place) for place in places])
                to = builder.gep(out, [builder.mul(y_stride, constant(row))])
                builder.store(halved, builder.bitcast(to, halved.type.as_pointer()), align=4)
            width = constant(LANES)
            summed = builder.mul(builder.udiv(n, width), width)
            with builder.if_then(builder.icmp_signed("<", summed, n)), cgutils.for_range(builder, count) as loop:
                pointer = weights(loop.index)
                for row, activation in enumerate(activations):
                    place = builder.gep(out, [builder.add(builder.mul(y_stride, constant(row)), loop.index)])
                    with cgutils.for_range_slice(builder, summed, n, constant(1), I64) as (at, _):
                        a, b = (load_wide(builder, tag, row_at, at, 1) for row_at in (pointer, activation))
                        builder.store(fused(builder, a, b, builder.load(place)), place)
            return context.get_dummy_value()

        return signature, generate

    def intrinsic_column(  # numba wants the arguments by name
        context: Any, tag: Any, w: Any, ws: Any, x: Any, xs: Any, y: Any, ys: Any, n: Any
    ) -> Any:
        return column(context, tag, w, ws, x, xs, y, ys, n)

    return intrinsic(intrinsic_column)


Column = Callable[[Tag, int, int, int, int, int, int, int], None]
"""``(tag, w, w_stride, x, x_stride, y, y_stride, n)``: `COLUMN` rows of n weights, read from one end to the other, with
rows of n activations; ``y`` gets `COLUMN` results side by side for each of those, ``y_stride`` from one to the next."""

dots_column1: Column = cast(Column, _make_column(1))
dots_column2: Column = cast(Column, _make_column(2))
dots_column3: Column = cast(Column, _make_column(3))
dots_column4: Column = cast(Column, _make_column(4))
dots_column1_short: Column = cast(Column, _make_column(1, 2))
"""As `dots_column1`; two rows of weights at once, which short ones are faster with."""


def _prefetch_lines(_context: Any, address: Any, lines: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        start = builder.inttoptr(arguments[0], _BYTE_POINTER)
        with cgutils.for_range(builder, arguments[1]) as loop:
            _prefetch(builder, builder.gep(start, [builder.mul(loop.index, constant(_LINE_BYTES))]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


prefetch_lines = cast(Callable[[int, int], None], intrinsic(_prefetch_lines))
"""``(address, lines)``: ask memory for lines of 64 bytes; addresses that nothing stands at do no harm."""


def _dot(_context: Any, tag: Any, w: Any, x: Any, n: Any) -> Any:
    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        rows = [pointer_to(builder, tag, arguments[1])], [pointer_to(builder, tag, arguments[2])]
        return _emit_dots(builder, tag, *rows, arguments[3])[0]

    return types.float32(tag, types.int64, types.int64, types.int64), generate


def _mix(_context: Any, tag: Any, w: Any, w_stride: Any, x: Any, y: Any, rows: Any, n: Any, on: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        _tag, w, w_stride, x, y, rows, n, on = arguments
        weights, factors, out = (
            pointer_to(builder, kind, at) for kind, at in ((tag, w), (types.float32, x), (types.float32, y))
        )

        def columns(begin: Any, end: Any, lanes: int, vectors: int = 1) -> None:
            # Several vectors side by side: each sum waits for its last addition, and so they wait together.
            type_ = ir.VectorType(F32, lanes) if lanes > 1 else F32
            totals = [cgutils.alloca_once(builder, type_) for _ in range(vectors)]
            with cgutils.for_range_slice(builder, begin, end, constant(lanes * vectors), I64) as (at, _):
                places = [builder.add(at, constant(lanes * number)) for number in range(vectors)]
                targets = [builder.gep(out, [place]) for place in places]
                if lanes > 1:
                    targets = [builder.bitcast(target, type_.as_pointer()) for target in targets]
                for total in totals:
                    builder.store(fill(type_, 0), total)
                with builder.if_then(builder.icmp_signed("!=", on, constant(0))):
                    for target, total in zip(targets, totals, strict=True):
                        builder.store(builder.load(target, align=4), total)
                with cgutils.for_range(builder, rows) as loop:
                    row = builder.mul(loop.index, w_stride)
                    factor = builder.load(builder.gep(factors, [loop.index]))
                    if lanes > 1:
                        one = builder.insert_element(ir.Constant(type_, ir.Undefined), factor, ir.Constant(I32, 0))
                        factor = builder.shuffle_vector(one, one, fill(ir.VectorType(I32, lanes), 0))
                    for place, total in zip(places, totals, strict=True):
                        stored = load_wide(builder, tag, weights, builder.add(row, place), lanes)
                        builder.store(fused(builder, factor, stored, builder.load(total)), total)
                for target, total in zip(targets, totals, strict=True):
                    builder.store(builder.load(total), target, align=4)

        begin = constant(0)
        for lanes, vectors in ((LANES, _MIXED_TOGETHER), (LANES, 1), (1, 1)):
            step = constant(lanes * vectors)
            end = builder.mul(builder.udiv(n, step), step)
            columns(begin, end, lanes, vectors)
            begin = end
        return context.get_dummy_value()

    return types.void(tag, *[types.int64] * 7), generate


dot = cast(Callable[[Tag, int, int, int], np.float32], intrinsic(_dot))
"""``(tag, w, x, n)``: the sum of products of n numbers at ``w`` with n numbers at ``x``."""

mix = cast(Callable[[Tag, int, int, int, int, int, int, int], None], intrinsic(_mix))
"""``(tag, w, w_stride, x, y, rows, n, on)``: the sum of ``rows`` rows of n numbers at ``w``, each times its float32 at
``x``, to n float32 at ``y``; each of the n sums goes row after row, with one rounding a step. It begins with 0, or with
what is in ``y`` where ``on`` is not 0."""
