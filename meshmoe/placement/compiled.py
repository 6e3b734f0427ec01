"""Loops that numpy has no words for, compiled where numba is, and plain Python where it is not.

numba takes seconds to import and a function seconds to compile, so nothing happens before the first call; what was
compiled is kept on disk, and compiled again when the file that the function stands in has changed. So such a function
must not call one of another file. It runs without the interpreter lock.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function of numbers and arrays at its first call."""

    @functools.cache
    def best() -> Callable[..., Any]:
        try:
            import numba
        except (
            ImportError
        ):  # numba publishes no build for every platform; what it computes is the same, 100 times slower
            return function
        return cast(Callable[..., Any], numba.njit(nogil=True, cache=True)(function))

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return best()(*arguments)

    return cast(Function, call)
