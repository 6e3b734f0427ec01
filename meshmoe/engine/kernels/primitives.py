"""What kernels are made of: numbers in memory, their rounding, and a few instructions.

Memory is addressed by plain integers, as ``Tensor.data_ptr()`` gives them, so that one call can take the tensors of a
whole model. Weights and the activations that they are multiplied with are in the model's dtype, named by a *tag*: a
NumPy scalar whose type tells the compiler which code to make (NumPy has no bfloat16, so bits go as integers). Results
are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

Tag = np.uint16 | np.int16 | np.float32

TAGS: dict[torch.dtype, Tag] = {
    torch.bfloat16: np.uint16(0),
    torch.float16: np.int16(0),
    torch.float32: np.float32(0),
}
"""The tag of each dtype that kernels know."""

F32_TAG = np.float32(0)

int64 = cast(Callable[[int], int], np.int64)
"""Makes a number of a literal, which would have the compiler make a version of the callee for it."""

# For those who make code (`dots`): LLVM's types, and what this module's functions are made of.
F32, _F16, _I16, I32, I64 = ir.FloatType(), ir.HalfType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def constant(value: int) -> Any:
    """An int64."""
    return ir.Constant(I64, value)


def stored(tag: Any) -> tuple[Any, int]:
    """The type of a stored number, and its bytes."""
    return (F32, 4) if tag == types.float32 else (_I16, 2)


def pointer_to(builder: Any, tag: Any, address: Any) -> Any:
    """An address as a pointer to stored numbers."""
    return builder.inttoptr(address, stored(tag)[0].as_pointer())


def _like(value: Any, scalar: Any) -> Any:
    """The scalar type, or the vector of it with as many lanes as ``value``."""
    return ir.VectorType(scalar, value.type.count) if isinstance(value.type, ir.VectorType) else scalar


def fill(type_: Any, number: int) -> Any:
    """A constant, in every lane if it is a vector."""
    return ir.Constant(type_, [number] * type_.count if isinstance(type_, ir.VectorType) else number)


def _widened(builder: Any, tag: Any, bits: Any) -> Any:
    """Stored bits as float32; exact."""
    if tag == types.float32:
        return bits
    if tag == types.int16:
        return builder.fpext(builder.bitcast(bits, _like(bits, _F16)), _like(bits, F32))
    wide = builder.zext(bits, _like(bits, I32))
    return builder.bitcast(builder.shl(wide, fill(wide.type, 16)), _like(bits, F32))


def _narrowed(builder: Any, tag: Any, value: Any) -> Any:
    """float32 as stored bits, to nearest, ties to even."""
    if tag == types.float32:
        return value
    if tag == types.int16:
        return builder.bitcast(builder.fptrunc(value, _F16), _I16)
    bits = builder.bitcast(value, I32)
    odd = builder.and_(builder.lshr(bits, ir.Constant(I32, 16)), ir.Constant(I32, 1))
    up = builder.add(bits, builder.add(odd, ir.Constant(I32, 0x7FFF)))
    # Not a number stays one: the carry could make an infinity or a zero of it.
    kept = builder.select(builder.fcmp_unordered("uno", value, value), bits, up)
    return builder.trunc(builder.lshr(kept, ir.Constant(I32, 16)), _I16)


def load_wide(builder: Any, tag: Any, pointer: Any, at: Any, lanes: int) -> Any:
    """Stored numbers from the one at ``at`` on, as float32."""
    scalar, size = stored(tag)
    place = builder.gep(pointer, [at])
    if lanes > 1:
        place = builder.bitcast(place, ir.VectorType(scalar, lanes).as_pointer())
    return _widened(builder, tag, builder.load(place, align=size))


def fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` with one rounding, of numbers or vectors."""
    name = f"llvm.fma.v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "llvm.fma.f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


def _increment(_context: Any, address: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        place = builder.gep(builder.inttoptr(arguments[0], I64.as_pointer()), [arguments[1]])
        builder.store(builder.add(builder.load(place), constant(1)), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _address_at(_context: Any, address: Any, at: Any) -> Any:
    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        return builder.load(builder.gep(builder.inttoptr(arguments[0], I64.as_pointer()), [arguments[1]]))

    return types.int64(types.int64, types.int64), generate


def _read(_context: Any, tag: Any, address: Any, at: Any) -> Any:
    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        return load_wide(builder, tag, pointer_to(builder, tag, arguments[1]), arguments[2], 1)

    return types.float32(tag, types.int64, types.int64), generate


def _write(_context: Any, tag: Any, address: Any, at: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        place = builder.gep(pointer_to(builder, tag, arguments[1]), [arguments[2]])
        builder.store(_narrowed(builder, tag, arguments[3]), place, align=stored(tag)[1])
        return context.get_dummy_value()

    return types.void(tag, types.int64, types.int64, types.float32), generate


def _rounded(_context: Any, tag: Any, value: Any) -> Any:
    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        return _widened(builder, tag, _narrowed(builder, tag, arguments[1]))

    return types.float32(tag, types.float32), generate


def _fused(_context: Any, a: Any, b: Any, c: Any) -> Any:
    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        return fused(builder, *arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


def _out_of_line(_context: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, _arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


def _size_of(_context: Any, tag: Any) -> Any:
    return types.int64(tag), lambda _c, _builder, _s, _arguments: constant(stored(tag)[1])


def kind(tag: Any) -> int:
    """A number for the type of a tag, from 1 on."""
    return 1 if tag == types.uint16 else 2 if tag == types.int16 else 3


def _kind_of(_context: Any, tag: Any) -> Any:
    return types.int64(tag), lambda _c, _builder, _s, _arguments: constant(kind(tag))


def _two_to(_context: Any, exponent: Any) -> Any:
    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        biased = builder.add(builder.fptosi(arguments[0], I32), ir.Constant(I32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(I32, 23)), F32)

    return types.float32(types.float32), generate


read = cast(Callable[[Tag, int, int], np.float32], intrinsic(_read))
"""``(tag, address, i)``: the i-th stored number as float32."""

write = cast(Callable[[Tag, int, int, np.float32], None], intrinsic(_write))
"""``(tag, address, i, value)``: store a float32, rounded to nearest."""

rounded = cast(Callable[[Tag, np.float32], np.float32], intrinsic(_rounded))
"""``(tag, value)``: what `write` and `read` would make of a float32."""

fma = cast(Callable[[np.float32, np.float32, np.float32], np.float32], intrinsic(_fused))
"""``a * b + c`` with one rounding."""

increment = cast(Callable[[int, int], None], intrinsic(_increment))
"""``(address, i)``: add 1 to the i-th int64."""

address_at = cast(Callable[[int, int], int], intrinsic(_address_at))
"""``(address, i)``: the i-th int64."""

out_of_line = cast(Callable[[], None], intrinsic(_out_of_line))
"""Said in a compiled function: callers call it, and do not get a copy. For what is long and called in many places, so
that compiling everything takes seconds and not ten."""

size_of = cast(Callable[[Tag], int], intrinsic(_size_of))
"""Bytes of a stored number."""

kind_of = cast(Callable[[Tag], int], intrinsic(_kind_of))
"""A number for the type of a tag: tags themselves are all 0."""

two_to = cast(Callable[[np.float32], np.float32], intrinsic(_two_to))
"""2 to a whole power between -126 and 127."""
