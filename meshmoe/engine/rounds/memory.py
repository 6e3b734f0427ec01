"""What compiled rounds are made of: functions by address, bytes at addresses, the clock, and locks.

Addresses are plain integers, as everywhere in the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from time import CLOCK_MONOTONIC
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.primitives import I32, I64, address_at

_I8, _F64 = ir.IntType(8), ir.DoubleType()


def _calling(result: Any, parameters: list[Any]) -> Callable[..., Any]:
    """Make the code of a call of a C function: its result, and the LLVM types of its parameters."""
    signature = ir.FunctionType(result, parameters)

    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        function = builder.inttoptr(arguments[0], signature.as_pointer())
        values = [
            builder.trunc(value, parameter) if parameter is I32 else value
            for value, parameter in zip(arguments[1:], parameters, strict=True)
        ]
        found = builder.call(function, values)
        return builder.sext(found, I64) if result is I32 else found

    return generate


def _call_1(_context: Any, function: Any, a: Any) -> Any:
    return types.int64(types.int64, types.int64), _calling(I64, [I64])


def _call_1_int(_context: Any, function: Any, a: Any) -> Any:
    return types.int64(types.int64, types.int64), _calling(I32, [I64])


def _call_2(_context: Any, function: Any, a: Any, b: Any) -> Any:
    return types.int64(types.int64, types.int64, types.int64), _calling(I64, [I64, I64])


def _call_3_int(_context: Any, function: Any, a: Any, b: Any, c: Any) -> Any:
    signature = types.int64(types.int64, types.int64, types.int64, types.int64)
    return signature, _calling(I32, [I64, I64, I32])


def _call_4_int(_context: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    signature = types.int64(types.int64, types.int64, types.int64, types.int64, types.int64)
    return signature, _calling(I32, [I64, I64, I64, I32])


def _reading(type_: Any, widen: bool) -> Callable[..., Any]:
    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        found = builder.load(builder.inttoptr(arguments[0], type_.as_pointer()), align=1)
        return builder.sext(found, I64) if widen else found

    return generate


def _byte(_context: Any, address: Any) -> Any:
    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        return builder.zext(builder.load(builder.inttoptr(arguments[0], _I8.as_pointer())), I64)

    return types.int64(types.int64), generate


def _int32(_context: Any, address: Any) -> Any:
    return types.int64(types.int64), _reading(I32, True)


def _double(_context: Any, address: Any) -> Any:
    return types.float64(types.int64), _reading(_F64, False)


def _put_byte(_context: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        builder.store(builder.trunc(arguments[1], _I8), builder.inttoptr(arguments[0], _I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _put_int32(_context: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], I32.as_pointer())
        builder.store(builder.trunc(arguments[1], I32), place, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _put_double(_context: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], _F64.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.float64), generate


call_1 = cast(Callable[[int, int], int], intrinsic(_call_1))
"""``(function, a)``: of a pointer; returns a pointer or ``size_t``."""

call_1_int = cast(Callable[[int, int], int], intrinsic(_call_1_int))
"""``(function, a)``: of a pointer; returns an ``int``."""

call_2 = cast(Callable[[int, int, int], int], intrinsic(_call_2))
"""``(function, a, b)``: of two pointers; returns a pointer."""

call_3_int = cast(Callable[[int, int, int, int], int], intrinsic(_call_3_int))
"""``(function, a, b, c)``: of two pointers and an ``int``; returns an ``int``."""

call_4_int = cast(Callable[[int, int, int, int, int], int], intrinsic(_call_4_int))
"""``(function, a, b, c, d)``: of two pointers, a ``size_t`` and an ``int``; returns an ``int``."""

byte_at = cast(Callable[[int], int], intrinsic(_byte))
int32_at = cast(Callable[[int], int], intrinsic(_int32))
double_at = cast(Callable[[int], float], intrinsic(_double))
put_byte = cast(Callable[[int, int], None], intrinsic(_put_byte))
put_int32 = cast(Callable[[int, int], None], intrinsic(_put_int32))
put_double = cast(Callable[[int, float], None], intrinsic(_put_double))

copy = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))
differ = types.ExternalFunction("memcmp", types.int32(types.int64, types.int64, types.int64))
length = types.ExternalFunction("strnlen", types.int64(types.int64, types.int64))
read_from = types.ExternalFunction("read", types.int64(types.int32, types.int64, types.int64))
wait_for = types.ExternalFunction("ppoll", types.int32(types.int64, types.int64, types.int64, types.int64))
lock_now = types.ExternalFunction("pthread_mutex_trylock", types.int32(types.int64))
unlock = types.ExternalFunction("pthread_mutex_unlock", types.int32(types.int64))
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))


@jit
def clock_ns(room: int) -> int:
    """Nanoseconds of the monotonic clock; ``room`` is the address of two int64 to work with."""
    _clock_gettime(CLOCK_MONOTONIC, room)
    return address_at(room, 0) * 1_000_000_000 + address_at(room, 1)
