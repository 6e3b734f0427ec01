"""Network namespaces: every node of a chaos run with an interface of its own, so that its cable can really be pulled.

Needs root, Linux, and iproute2's ``ip``. A bridge joins the namespaces; the run itself stands at the bridge.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from meshmoe.bench_engine.wires.netns import exec_prefix, ip, require_namespaces

NODES_MAX = 9


class Namespaces:
    """Made by `open_namespaces`."""

    def __init__(self, names: Sequence[str]) -> None:
        self._tag = f"mm{os.getpid() % 100_000}"  # names of interfaces have 15 characters at most
        self._net = f"10.213.{os.getpid() % 250}"
        self._number = {name: i + 1 for i, name in enumerate(names)}

    def host(self, name: str) -> str:
        """The address of a node."""
        return f"{self._net}.{self._number[name]}"

    def command(self, name: str) -> list[str]:
        """What a command is preceded by to run in a node's namespace."""
        return exec_prefix(self._space(name))

    def pull(self, name: str) -> None:
        """Take a node off the network, both ways."""
        _ip("link", "set", self._cable(name), "down")

    def plug(self, name: str) -> None:
        """Put it back."""
        _ip("link", "set", self._cable(name), "up")

    def make(self) -> None:
        """Make bridge, namespaces and cables."""
        bridge = f"{self._tag}br"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self._net}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for name in self._number:
            space, cable = self._space(name), self._cable(name)
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", bridge, "up")
            _ip("-n", space, "addr", "add", f"{self.host(name)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def remove(self) -> None:
        """Take all of it away again, whatever of it is there."""
        for name in self._number:
            _ip("netns", "del", self._space(name), check=False)
            _ip("link", "del", self._cable(name), check=False)
        _ip("link", "del", f"{self._tag}br", check=False)

    def _space(self, name: str) -> str:
        return f"{self._tag}-{self._number[name]}"

    def _cable(self, name: str) -> str:
        return f"{self._tag}v{self._number[name]}"


@contextmanager
def open_namespaces(names: Sequence[str]) -> Iterator[Namespaces]:
    """Namespaces for nodes of these names, gone when the block ends.

    Raises:
        ConfigError: This user or this machine cannot make them.
    """
    require_namespaces("--netns")
    spaces = Namespaces(names)
    try:
        spaces.make()
        yield spaces
    finally:
        spaces.remove()


def _ip(*words: str, check: bool = True) -> None:
    ip(*words, check=check, asked_by="--netns")
