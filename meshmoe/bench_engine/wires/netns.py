"""Network namespaces by name, and what has to be there for them: root, Linux, and iproute2's ``ip``."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshmoe.core.errors import ConfigError

DIRECTORY = Path("/run/netns")
"""Where ``ip netns`` keeps them."""

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def require_namespaces(flag: str) -> None:
    """Refuse where this user or this machine cannot make them.

    Args:
        flag: What asked for them, for the message.

    Raises:
        ConfigError: One line that says what is missing.
    """
    if _LIBC is None:
        raise ConfigError(f"{flag} needs Linux: without it, links are emulated by the nodes themselves")
    if os.geteuid() != 0:
        raise ConfigError(f"{flag} needs root: without it, links are emulated by the nodes themselves")
    ip("-Version", asked_by=flag)


def ip(*words: str, check: bool = True, asked_by: str = "network namespaces") -> str:
    """Run iproute2's ``ip``; returns what it says.

    Args:
        words: Its arguments.
        check: Whether to raise where it fails.
        asked_by: Who needs it, for the message.

    Raises:
        ConfigError: There is none, or it failed.
    """
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)  # noqa: S607 - of the PATH
    except FileNotFoundError:
        raise ConfigError(f"{asked_by} needs the command `ip` (iproute2)") from None
    if check and done.returncode:
        raise ConfigError(f"{asked_by}: `ip {' '.join(words)}`: {done.stderr.strip() or done.returncode}")
    return done.stdout


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Put this thread into a namespace; what is opened in the block stays there for good, whoever uses it later.

    Nothing may be awaited in the block.
    """
    assert _LIBC is not None
    with Path("/proc/thread-self/ns/net").open() as before, (DIRECTORY / namespace).open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    assert _LIBC is not None
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def exec_prefix(namespace: str) -> list[str]:
    """What a command is preceded by to run in a namespace."""
    return ["ip", "netns", "exec", namespace]
