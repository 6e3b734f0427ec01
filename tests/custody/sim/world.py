"""The simulated mesh, and what can be done to it."""

from __future__ import annotations

from random import Random

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import CustodyConfig, CustodyEvent
from meshmoe.custody.rule import CustodyRule
from meshmoe.custody.state import decode_state, next_generation
from meshmoe.gossip import NodeView
from tests.custody.sim.checker import Checker
from tests.custody.sim.clock import Clock
from tests.custody.sim.network import Network
from tests.custody.sim.node import Disk, SimNode

PIECE_BYTES = 1 << 20


class World:
    """Nodes, network, clock, checker."""

    def __init__(self, seed: int, *, layers: int, experts: int, rule: CustodyRule | None = None) -> None:
        self.rng = Random(seed)
        self.clock = Clock()
        self.network = Network(self.clock, self.rng)
        self.config = CustodyConfig(silence_s=15.0, piece_timeout_s=3.0, claim_s=15.0)
        self.rule = rule
        self.unit_bytes = 2 * PIECE_BYTES + 4321
        self.rate_bytes_per_s = 20_000_000.0
        self.damage = 0.0
        self.expert_bytes = {
            ExpertId(layer, index): self.unit_bytes for layer in range(layers) for index in range(experts)
        }
        self.nodes: dict[NodeId, SimNode] = {}
        """The last life of each."""
        self.checker = Checker(self)
        self.log: list[str] = []

    def living(self) -> list[SimNode]:
        """Nodes that run, or stand still for a while."""
        return [node for node in self.nodes.values() if node.alive]

    def note(self, text: str) -> None:
        """For whoever reads a failure."""
        self.log.append(f"{self.clock.now:8.3f} {text}")

    def start(self, name: NodeId, capacity_bytes: int, disk: Disk) -> SimNode:
        """Start a node, or its next life."""
        state = None
        if disk.state is not None:
            state = decode_state(disk.state)
        last = self.nodes[name].generation if name in self.nodes else 0
        # Without a disk, the wall clock keeps generations apart.
        generation = max(next_generation(state, int(self.clock.now * 1000)), last + 1)
        self.note(f"{name} starts as {generation} with {len(disk.stored_bytes)} units on disk")
        self.nodes[name] = node = SimNode(self, name, generation, capacity_bytes, disk)
        return node

    def crash(self, node: SimNode) -> None:
        """Kill a node."""
        custody = set(node.machine.custody)
        self.note(f"{node.name} crashes with {len(custody)} experts in custody")
        node.crash()
        self.checker.crashed(custody)
        self.checker.coverage()

    def depart(self, node: SimNode) -> None:
        """A node that has handed everything over goes."""
        assert node.left is not None
        self.note(f"{node.name} leaves, keeping {node.left.kept}")
        kept = {expert for expert, _ in node.left.kept}
        node.crash()
        self.checker.forgive(kept - {e for other in self.living() for e in other.machine.custody})
        self.checker.coverage()
        for other in self.living():
            other.forget(node.name)

    def deliver(self, target: NodeId, event: CustodyEvent, life: int | None = None) -> None:
        """Something arrives at a node, if it is there (and the same life, if it matters)."""
        node = self.nodes.get(target)
        if node is not None and node.alive and life in (None, node.generation):
            node.feed(event)

    def gossip(self, target: NodeId, version: int, view: NodeView) -> None:
        """A node's entry arrives at another one."""
        node = self.nodes.get(target)
        if node is not None and node.alive:
            node.hear(version, view)
