"""How kernels are compiled, and where the compiled code is kept.

numba keeps compiled code on disk and looks at the modification time of the file that a function stands in, but not at
those of the functions that it calls. Old code of a callee would then live on inside a caller: wrong bits on one node of
a mesh. So the directory's name carries a digest of all kernel sources; another version has another directory.

Nothing here may use ``fastmath``: it lets the compiler reorder sums, and differently in every place that a function is
inlined into. Sums are ordered by hand instead (see `dots`), which makes a kernel's bits the same wherever it is
called from, for any number of rows beside a row, and on any CPU.

Compiling takes most of a machine's first start. For an integer literal among a call's arguments numba would make a
version of the callee of its own, and so of all that passes it on: here it does not. What is long and called in many
places is compiled once (see `linking`), and of several nodes of one box, one compiles: see `once_a_machine`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numba
from numba.types import unliteral

Function = TypeVar("Function", bound=Callable[..., Any])

_SOURCES = ("kernels", "lean", "rounds")

WAIT_S_MAX = 600.0
"""For another process that compiles; it may have been stopped in the middle. If it dies, its lock is free at once."""

LOOK_S = 0.1


def cache_directory() -> Path:
    """Where compiled code is kept: ``meshmoe/kernels/<digest>`` in the user's cache directory, else a temporary one."""
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    directory = root / "meshmoe" / "kernels" / _digest()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="meshmoe-kernels-"))
    return directory if os.access(directory, os.W_OK) else Path(tempfile.mkdtemp(prefix="meshmoe-kernels-"))


def jit(function: Function) -> Function:
    """Compile a function at its first call, once a signature and machine; it runs without the interpreter lock."""
    compiled = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    template = compiled.get_call_template

    def without_literals(arguments: Iterable[Any], named: Mapping[str, Any]) -> Any:
        return template(tuple(map(unliteral, arguments)), {name: unliteral(type_) for name, type_ in named.items()})

    compiled.get_call_template = without_literals
    return cast(Function, compiled)


@contextmanager
def once_a_machine(what: str) -> Iterator[None]:
    """Compile something inside: one process does, and others that want to wait and then find it on disk.

    Args:
        what: Its name, for a file that says that it is there. Should that be wrong, several compile at once.
    """
    directory = Path(numba.config.CACHE_DIR)
    done = directory / f"{what}.done"
    with ExitStack() as stack:
        if not done.exists():
            with suppress(OSError):  # a directory that cannot be written to is this process's own trouble
                _lock(stack.enter_context((directory / "lock").open("wb")))
        yield
        with suppress(OSError):
            done.touch()


def _lock(file: BinaryIO) -> None:
    """Wait for a lock, and go on without it if it takes too long."""
    until_s = time.monotonic() + WAIT_S_MAX
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                return
            time.sleep(LOOK_S)
        else:
            return


def _digest() -> str:
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    engine = Path(__file__).parent.parent
    for package in _SOURCES:
        for path in sorted((engine / package).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = str(cache_directory())
