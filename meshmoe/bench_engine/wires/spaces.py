"""The namespaces of a run: one a node, named after the process that owns them, so that nobody's are left for ever.

That process removes them when it ends, also when whoever started it was killed. What one leaves that was killed itself
is removed when the next one starts: a name says whose it is.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from meshmoe.bench_engine.wires.netns import DIRECTORY, ip

NODES_MAX = 250
"""A node's number is the last byte of its address."""

_NAME = re.compile(r"mmw(\d+)-(\d+)")
_NETWORK = "10.77.0"
"""The namespaces have no way out, so it does not matter who else uses these addresses."""


def space_name(owner: int, number: int) -> str:
    """Of the namespace of node ``number``, counted from 0; ``owner`` is a process id."""
    return f"mmw{owner}-{number}"


def host(number: int) -> str:
    """The address of a node."""
    return f"{_NETWORK}.{number + 1}"


def remove_spaces(owner: int) -> None:
    """Remove all namespaces of a process, whatever of them is there."""
    for name, whose in _present():
        if whose == owner:
            ip("netns", "del", name, check=False)


def remove_leftovers() -> list[str]:
    """Remove the namespaces whose process has died; returns their names."""
    left = [name for name, owner in _present() if not _lives(owner)]
    for name in left:
        ip("netns", "del", name, check=False)
    return left


def _present() -> list[tuple[str, int]]:
    names: list[str] = []
    with suppress(FileNotFoundError):  # nobody has made one yet
        names = sorted(path.name for path in DIRECTORY.iterdir())
    return [(name, int(match[1])) for name in names if (match := _NAME.fullmatch(name))]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
