"""Carries a plan out on real processes."""

from __future__ import annotations

import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import httpx
import trio

from meshmoe.cli.chaos.garbage import send_as_member, send_as_stranger, send_noise
from meshmoe.cli.chaos.namespaces import Namespaces
from meshmoe.cli.chaos.plan import KINDS, Fault
from meshmoe.cli.local_mesh import LocalNode, NodeFailedError
from meshmoe.core.endpoints import Endpoints
from meshmoe.core.errors import ConfigError
from meshmoe.transport.keyring import new_key_pair

LINK = {"rtt": "1.2ms", "rate": "500Mbit/s", "jitter": "0.2ms", "loss": "0%"}
"""Every link when nothing is wrong with it: the paper's rate."""

LATE_S_MAX = 60.0
"""A fault that takes something away waits so long for the one before to be over; then it is left out."""

START_S_MAX = 400.0
"""A box that runs five nodes on two cores takes minutes to start one."""


class Faults:
    """Does to the mesh what the plan says, and remembers when."""

    def __init__(
        self,
        nodes: dict[str, LocalNode],
        directory: Path,
        word: Callable[[], str],
        now_s: Callable[[], float],
        rng: Random,
        spaces: Namespaces | None,
    ) -> None:
        """Make one.

        Args:
            nodes: The mesh.
            directory: Where the links file is.
            word: What a node joins with.
            now_s: The run's clock.
            rng: Of the garbage.
            spaces: The namespaces that the nodes are in; partitions are emulated without.
        """
        self._nodes = nodes
        self._word = word
        self._now_s = now_s
        self._rng = rng
        self._spaces = spaces
        self._keys = new_key_pair()
        self._links_path = directory / "links.toml"
        self._bad: dict[str, dict[str, str] | None] = {}
        self.injected: Counter[str] = Counter()
        """Faults that happened, by kind."""
        self.left_out = 0
        """Faults of the plan that did not happen: their node was gone, or the ones before took too long."""
        self.spans: list[tuple[Fault, float, float]] = []
        """Faults as they were, with the times of their begin and end."""
        self._down_since_s: dict[str, float] = {}
        self._down_until_s: dict[str, float] = {}
        self.garbage_parcels = 0
        self.failures: list[str] = []
        """Nodes that did not come back, in words."""
        self._taking_away = trio.Lock()
        self.write_links()

    @property
    def links_path(self) -> Path:
        """The topology file that all nodes read, again at every SIGHUP."""
        return self._links_path

    def gone_since(self, node: str, since_s: float) -> bool:
        """Whether a node was stopped, killed or left at some time since then."""
        return node in self._down_since_s or self._down_until_s.get(node, -1.0) >= since_s

    async def run(self, plan: list[Fault]) -> None:
        """Carry out the whole plan."""
        async with trio.open_nursery() as nursery:
            for fault in plan:
                await trio.sleep(max(0.0, fault.at_s - self._now_s()))
                nursery.start_soon(self._in_turn, fault)

    async def _in_turn(self, fault: Fault) -> None:
        if not KINDS[fault.kind].takes_away:
            await self._one(fault)
            return
        # A slow box may take longer to come back than the plan allows for.
        async with self._taking_away:
            if self._now_s() < fault.at_s + LATE_S_MAX:
                await self._one(fault)
            else:
                self.left_out += 1

    async def _one(self, fault: Fault) -> None:
        node, began_s = self._nodes[fault.node], self._now_s()
        if fault.node in self._down_since_s or node.exit_code is not None:
            self.left_out += 1
            return
        match fault.kind:
            case "kill" | "wipe" | "leave":
                await self._restart(fault, node)
            case "stop":
                self._down_since_s[fault.node] = began_s
                node.send_signal(signal.SIGSTOP)
                await trio.sleep(fault.lasts_s)
                node.send_signal(signal.SIGCONT)
                self._up(fault.node)
            case "partition" if self._spaces is not None:
                self._spaces.pull(fault.node)
                await trio.sleep(fault.lasts_s)
                self._spaces.plug(fault.node)
            case "partition" | "loss" | "delay":
                changed = {"loss": {"loss": "5%"}, "delay": {"rtt": "41.2ms"}}.get(fault.kind)
                self._bad[fault.node] = changed
                self.write_links()
                await trio.sleep(fault.lasts_s)
                self._bad.pop(fault.node, None)
                self.write_links()
            case "disk-full":
                _limit_files(node, 4096)
                await trio.sleep(fault.lasts_s)
                _limit_files(node, resource.RLIM_INFINITY)
            case _:
                if not await self._send_garbage(fault):
                    self.left_out += 1
                    return
        self.injected[fault.kind] += 1
        self.spans.append((fault, began_s, self._now_s()))

    async def _restart(self, fault: Fault, node: LocalNode) -> None:
        self._down_since_s[fault.node] = self._now_s()
        if fault.kind == "leave":
            node.send_signal(signal.SIGTERM)
            if await node.wait(60) is None:
                await node.stop()
        else:
            await node.stop()
        if fault.kind == "wipe":
            shutil.rmtree(node.directory / "state" / "models", ignore_errors=True)
            (node.directory / "state" / "custody.msgpack").unlink(missing_ok=True)
        await trio.sleep(fault.lasts_s)
        node.start("--peer", self._word())
        try:
            await node.wait_status(lambda status: bool(status["serving"]["ready"]), "serving again", START_S_MAX)
        except NodeFailedError as error:
            self.failures.append(f"after {fault.kind}: {error}")
        self._up(fault.node)
        self.write_links()  # they may have changed while it started

    def _up(self, node: str) -> None:
        self._down_since_s.pop(node, None)
        self._down_until_s[node] = self._now_s()

    async def _send_garbage(self, fault: Fault) -> bool:
        try:
            status = await self._nodes[fault.node].status()
        except httpx.HTTPError:
            return False  # it stands still or is gone: nobody to annoy
        host, _, port = status["peers"][0]["address"].rpartition(":")
        endpoints = Endpoints(host, int(port), int(port) + 1, int(port) + 2)
        word = status["join_command"].split()[-1]
        if fault.kind == "noise":
            await send_noise(endpoints, fault.lasts_s, self._rng)
        elif fault.kind == "stranger":
            self.garbage_parcels += await send_as_stranger(word, endpoints, fault.lasts_s, self._rng)
        else:
            self.garbage_parcels += await send_as_member(word, endpoints, self._keys, fault.lasts_s, self._rng)
        return True

    def write_links(self) -> None:
        """Write the links as they are to be now, and have the nodes read them."""
        names = list(self._nodes)
        lines = [f"[nodes.{name}]" for name in names]
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                bad = [self._bad[end] for end in (a, b) if end in self._bad]
                if None in bad:
                    continue  # no link: a partition
                link = dict(LINK)
                for change in bad:
                    link.update(change or {})
                values = "".join(f'{key} = "{value}"\n' for key, value in link.items())
                lines.append(f'[[links]]\nbetween = ["{a}", "{b}"]\n{values}')
        # In one step: a node that starts, or still has an earlier SIGHUP to mind, must not read half of it.
        written = self._links_path.with_suffix(".new")
        written.write_text("\n".join(lines), encoding="utf-8")
        written.replace(self._links_path)
        for node in self._nodes.values():
            node.send_signal(signal.SIGHUP)


def _limit_files(node: LocalNode, size_bytes: int) -> None:
    """Let no file of a process grow over this: to it, the disk is full."""
    try:
        _, hard = resource.prlimit(node.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (size_bytes, hard))
    except ProcessLookupError:
        pass  # it has been killed meanwhile
    except PermissionError as error:
        raise ConfigError("disk-full: this user may not set limits of its own processes") from error
