"""What real nodes tell: for bandwidth and convergence figures.

Each node holds its share of a model's experts and some replicas, claims them, reports its load each second, one layer's
demand each second in turn, its links each half minute; now and then an expert migrates between two nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from meshmoe.gossip import Claims, Demand, Holdings, Link, Links, Load, NodeInfo, Publish
from tests.membership.virtual import VirtualNet, VirtualNode


@dataclass(frozen=True)
class Model:
    """Sizes of a model."""

    layers: int
    experts: int


EDGE = Model(8, 32)
BENCH = Model(16, 64)
"""The reference workloads edge-28m and bench-1.7b."""


class Workload:
    """Makes the nodes of a mesh talk."""

    def __init__(
        self, net: VirtualNet, nodes: list[VirtualNode], model: Model, *, migrations_per_s: float = 0.1
    ) -> None:
        self._net = net
        self._model = model
        self._rng = Random(net.seed)
        self._held: dict[str, list[set[int]]] = {}
        self._migrations_per_s = migrations_per_s
        for place, node in enumerate(nodes):
            self._begin(node, place, len(nodes))
        if migrations_per_s:
            net.at(self._rng.expovariate(migrations_per_s), self._migrate)

    def _begin(self, node: VirtualNode, place: int, count: int) -> None:
        held = [
            {e for e in range(self._model.experts) if (e + layer) % count == place or self._rng.random() < 0.1}
            for layer in range(self._model.layers)
        ]
        self._held[node.node] = held
        info = NodeInfo("serving", node.endpoints, "0.1.0", "a" * 40, 10**9, 120, 80_000)
        values = [info, Load(10**8, 9 * 10**8)]
        for layer, experts in enumerate(held):
            values += [Holdings.of(layer, experts), Claims.of(layer, dict.fromkeys(experts, 3))]
        self._net.tell(node, Publish(tuple(values)))
        self._net.at(self._rng.random(), lambda: self._second(node, 0))

    def _second(self, node: VirtualNode, second: int) -> None:
        rng = self._rng
        if node.active:
            rates = [rng.lognormvariate(0, 2) for _ in range(self._model.experts)]
            load = Load(rng.randrange(10**9), rng.randrange(10**9), rng.randrange(9), rng.randrange(9999))
            values = [load, Demand.of(second % self._model.layers, rates)]
            if second % 30 == 0:
                peers = list(node.membership.members)[:32]
                values.append(Links([Link(peer, rng.randrange(300, 3000), 10**8) for peer in peers]))
            self._net.tell(node, Publish(tuple(values)))
        if node.running:
            self._net.at(1.0, lambda: self._second(node, second + 1))

    def _migrate(self) -> None:
        self._net.at(self._rng.expovariate(self._migrations_per_s), self._migrate)
        giver, taker = self._rng.sample(self._net.active(), 2)
        layer = self._rng.randrange(self._model.layers)
        movable = self._held[giver.node][layer] - self._held[taker.node][layer]
        if movable:
            expert = self._rng.choice(sorted(movable))
            self._held[taker.node][layer].add(expert)
            self._held[giver.node][layer].discard(expert)
            for node in (taker, giver):
                held = self._held[node.node][layer]
                self._net.tell(node, Publish((Holdings.of(layer, held), Claims.of(layer, dict.fromkeys(held, 4)))))
