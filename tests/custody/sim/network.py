"""A network that loses, repeats, delays and reorders, and can be cut in two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from meshmoe.core.ids import NodeId
from tests.custody.sim.clock import Clock


@dataclass
class Faults:
    """How bad the network is."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_s: float = 0.01
    jitter_s: float = 0.02


class Network:
    """Carries callbacks from node to node."""

    def __init__(self, clock: Clock, rng: Random) -> None:
        self._clock = clock
        self._rng = rng
        self.faults = Faults()
        self.cut: set[tuple[NodeId, NodeId]] = set()
        """Directed links that carry nothing."""

    def carry(self, source: NodeId, target: NodeId, deliver: Callable[[], None], *, bytes_delay_s: float = 0.0) -> None:
        """Deliver, perhaps, perhaps twice, some time."""
        copies = 2 if self._rng.random() < self.faults.duplication else 1
        for _ in range(copies):
            if (source, target) in self.cut or self._rng.random() < self.faults.loss:
                continue
            delay_s = self.faults.delay_s + self._rng.expovariate(1.0) * self.faults.jitter_s + bytes_delay_s
            self._clock.after(delay_s, lambda: self._arrive(source, target, deliver))

    def _arrive(self, source: NodeId, target: NodeId, deliver: Callable[[], None]) -> None:
        if (source, target) not in self.cut:
            deliver()

    def split(self, nodes: list[NodeId], *, one_way: bool) -> None:
        """Cut the nodes in two at random, in one direction or both."""
        side = {node for node in nodes if self._rng.random() < 0.5}
        for node in nodes:
            for other in nodes:
                if (node in side) and (other not in side):
                    self.cut.add((node, other))
                    if not one_way:
                        self.cut.add((other, node))
