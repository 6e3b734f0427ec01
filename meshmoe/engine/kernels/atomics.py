"""Numbers that several threads read and write while all of them run compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I64 = ir.IntType(64)
_NUMBER_BYTES = 8


def _place(builder: Any, address: Any, at: Any) -> Any:
    return builder.gep(builder.inttoptr(address, _I64.as_pointer()), [at])


def _load(_context: Any, address: Any, at: Any) -> Any:
    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        return builder.load_atomic(_place(builder, *arguments), "acquire", _NUMBER_BYTES)

    return types.int64(types.int64, types.int64), generate


def _store(_context: Any, address: Any, at: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], _place(builder, *arguments[:2]), "release", _NUMBER_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _put(_context: Any, address: Any, at: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(builder, *arguments[:2]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _add(_context: Any, address: Any, at: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        builder.atomic_rmw("add", _place(builder, *arguments[:2]), arguments[2], "acq_rel")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _exchange(_context: Any, address: Any, at: Any, expected: Any, value: Any) -> Any:
    def generate(_c: Any, builder: Any, _s: Any, arguments: Any) -> Any:
        place, expected, value = _place(builder, *arguments[:2]), arguments[2], arguments[3]
        return builder.extract_value(builder.cmpxchg(place, expected, value, "acq_rel", "acquire"), 1)

    return types.boolean(types.int64, types.int64, types.int64, types.int64), generate


def _pause(_context: Any) -> Any:
    def generate(context: Any, builder: Any, _s: Any, _arguments: Any) -> Any:
        machine = binding.get_process_triple().split("-")[0]
        nothing = ir.VoidType()
        if machine in ("x86_64", "i686", "i386"):
            signature = ir.FunctionType(nothing, [])
            builder.call(cgutils.get_or_insert_function(builder.module, signature, "llvm.x86.sse2.pause"), [])
        elif machine in ("aarch64", "arm64"):
            signature = ir.FunctionType(nothing, [ir.IntType(32)])
            hint = cgutils.get_or_insert_function(builder.module, signature, "llvm.aarch64.hint")
            builder.call(hint, [ir.Constant(ir.IntType(32), 1)])  # YIELD
        return context.get_dummy_value()

    return types.void(), generate


load = cast(Callable[[int, int], int], intrinsic(_load))
"""``(address, i)``: the i-th int64, and whatever was written before it was stored."""

store = cast(Callable[[int, int, int], None], intrinsic(_store))
"""``(address, i, value)``: set the i-th int64; who loads it sees whatever was written before."""

put = cast(Callable[[int, int, int], None], intrinsic(_put))
"""``(address, i, value)``: set the i-th int64, in no order to anything."""

add = cast(Callable[[int, int, int], None], intrinsic(_add))
"""``(address, i, value)``: add to the i-th int64, in one step."""

exchange = cast(Callable[[int, int, int, int], bool], intrinsic(_exchange))
"""``(address, i, expected, value)``: set the i-th int64 if it is as expected, in one step; whether it was."""

pause = cast(Callable[[], None], intrinsic(_pause))
"""Tell the CPU that a loop waits for another thread."""

yield_core = types.ExternalFunction("sched_yield", types.int32())
"""Let other threads that want this core have it."""
