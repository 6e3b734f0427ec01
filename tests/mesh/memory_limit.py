"""A real limit of memory for some processes: a control group of their own, below that of the tests."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOG = """
import sys
taken = []
while len(taken) < {mib} // 4:
    taken.append(bytearray(b"x") * (4 << 20))
sys.stdin.read()
"""
"""A program that takes so much memory and keeps it, until its standard input ends."""


class MemoryGroup:
    """A control group for memory; version 1 or 2."""

    def __init__(self, path: Path, version: int) -> None:
        self._path = path
        self._usage, self._limit, self._events = (
            ("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control")
            if version == 1
            else ("memory.current", "memory.max", "memory.events")
        )

    @property
    def prefix(self) -> list[str]:
        """What a command is preceded by to run in the group."""
        return ["sh", "-c", f'echo $$ > "{self._path}/cgroup.procs" && exec "$@"', "sh"]

    def leave_bytes(self, size_bytes: int) -> None:
        """Let its processes have so much more than they have now."""
        (self._path / self._limit).write_text(str(int((self._path / self._usage).read_text()) + size_bytes))

    @property
    def killed(self) -> int:
        """How many of its processes the kernel has killed for memory."""
        found = re.search(r"^oom_kill (\d+)", (self._path / self._events).read_text(), re.MULTILINE)
        return int(found[1]) if found else 0


def choose_first(pid: int) -> None:
    """Where there is no memory left, the kernel is to kill this process before others."""
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


@contextmanager
def memory_group() -> Iterator[MemoryGroup | None]:
    """A new group; None where this user may not make one, or the kernel has no such groups."""
    found = next(filter(None, map(_made, Path("/proc/self/cgroup").read_text().splitlines())), None)
    if found is None:
        yield None
        return
    path, version = found
    try:
        yield MemoryGroup(path, version)
    finally:
        for _ in range(100):  # processes that have ended leave it a moment later
            try:
                path.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def _made(line: str) -> tuple[Path, int] | None:
    _, controllers, own = line.split(":", 2)
    if controllers not in ("", "memory"):
        return None
    version = 1 if controllers else 2
    path = Path(f"/sys/fs/cgroup{'/memory' if version == 1 else ''}{own}", f"meshmoe-test-{os.getpid()}")
    try:
        path.mkdir()
    except OSError:
        return None
    if not (path / ("memory.limit_in_bytes" if version == 1 else "memory.max")).exists():
        path.rmdir()
        return None
    return path, version
