"""Large functions that are compiled once, and called through a pointer.

numba copies the code of all that a function calls into it, then optimises the whole and makes machine code of it: at
every level of calls once again, and for every caller. For what is long and called in many places that is most of the
time of a machine's first start. So such a function is a C function of its own here, kept on disk like all others, and
callers load its address from a table in this process's memory. They know the table by a name, since their own code is
kept on disk and used by other processes, where the table lies elsewhere.

At first the table holds addresses of Python functions, which have the true one compiled or fetched from disk, put its
address there, and call it: as dynamic linkers do it (ELF's procedure linkage table). So nobody has to be prepared.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from meshmoe.engine.kernels.primitives import I64, TAGS, Tag, constant, kind

_CANNOT = 70
"""Exit status of a process that cannot go on (sysexits: an internal error)."""

_kept: list[object] = []
"""What is called by address lives as long as the process."""


def linked(function: Callable[..., int]) -> Callable[..., int]:
    """What compiled code calls instead of a function.

    Args:
        function: Not compiled yet. Takes a tag and int64, and returns one int64.
    """
    parameters = list(inspect.signature(function).parameters.values())
    numbers = len(parameters) - 1
    name = f"meshmoe_linked_{function.__module__}.{function.__qualname__}"
    table = np.zeros(len(TAGS) + 1, np.int64)
    for tag in TAGS.values():
        type_ = numba.typeof(tag)
        stub = ctypes.CFUNCTYPE(ctypes.c_int64, np.ctypeslib.as_ctypes_type(type(tag)), *[ctypes.c_int64] * numbers)
        first = stub(partial(_first, function, numbers, table, type_, stub))
        _kept.append(first)
        table[kind(type_)] = ctypes.cast(first, ctypes.c_void_p).value or 0
    binding.add_symbol(name, table.ctypes.data)
    _kept.append(table)

    def call(_context: Any, tag: Any, *_numbers: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            own = [context.get_value_type(type_) for type_ in signature.args]
            place = builder.module.globals.get(name)
            if place is None:
                place = ir.GlobalVariable(builder.module, ir.ArrayType(I64, len(TAGS) + 1), name)
            address = builder.load(builder.gep(place, [constant(0), constant(kind(tag))]))
            return builder.call(builder.inttoptr(address, ir.FunctionType(I64, own).as_pointer()), arguments)

        return types.int64(tag, *[types.int64] * numbers), generate

    own = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_ONLY), *parameters]
    call.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    return cast(Callable[..., int], intrinsic(call))


def _first(
    function: Callable[..., int], numbers: int, table: Any, type_: Any, stub: Any, tag: Tag, *arguments: int
) -> int:
    """The first call: get the compiled function. Nobody above could take an exception, so there must not be one."""
    try:
        signature = types.int64(type_, *[types.int64] * numbers)
        compiled = numba.cfunc(signature, cache=True, error_model="numpy")(function)
        _kept.append(compiled)
        table[kind(type_)] = compiled.address
        found: int = stub(compiled.address)(tag, *arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(_CANNOT)
    return found
