"""The simulated mesh: nodes by name, the network between them, and what can be done to them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random
from typing import NamedTuple

import msgspec

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.custody import PieceArrived, PieceFailed, RequestPiece, decode_state, next_generation
from meshmoe.custody.rule import CustodyRule
from meshmoe.sim.checker import Checker
from meshmoe.sim.clock import Clock
from meshmoe.sim.disk import Disk
from meshmoe.sim.network import Network
from meshmoe.sim.node import SimNode


class Box(NamedTuple):
    """What stays the same from life to life of a node.

    Attributes:
        capacity_bytes: Its budget for experts.
        clock_rate: Of its clocks, against true time.
        wall_ahead_s: How far its wall clock is ahead.
    """

    capacity_bytes: int
    clock_rate: float
    wall_ahead_s: float


class World:
    """See the module's text. All chance is ``rng``'s."""

    def __init__(
        self,
        rng: Random,
        expert_bytes: dict[ExpertId, int],
        boxes: dict[NodeId, Box],
        *,
        rule: CustodyRule | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """A world without running nodes.

        Args:
            rng: Of everything that happens by chance.
            expert_bytes: Size of every expert, on disk and in memory.
            boxes: Those that there are.
            rule: The custody rule; None for the product's.
            say: Hears every note as it is made.
        """
        self.rng = rng
        self.clock = Clock()
        self.network = Network(self.clock, rng)
        self.expert_bytes = expert_bytes
        self.boxes = boxes
        self.rule = rule
        self.damage = 0.0
        """Share of units that are found damaged when they are loaded."""
        self.nodes: dict[NodeId, SimNode] = {}
        """The last life of each."""
        self.checker = Checker(self)
        self.log: list[str] = []
        self.last_change_s = 0.0
        """When a node was started last, crashed, or said farewell."""
        self.left: dict[NodeId, SimNode] = {}
        """Nodes that have said farewell and were not started again."""
        self._say = say
        self._serials = count(1)
        self._ports = count(1024)
        self._listeners: dict[Endpoints, SimNode] = {}
        self._last_packed: tuple[Message | None, bytes] = (None, b"")

    def living(self) -> list[SimNode]:
        """Nodes whose process exists, running or paused."""
        return [node for node in self.nodes.values() if node.alive]

    def note(self, text: str) -> None:
        """For whoever reads a failure."""
        line = f"{self.clock.now:8.3f} {text}"
        self.log.append(line)
        if self._say is not None:
            self._say(line)

    # -- lives ------------------------------------------------------------

    def new_disk(self, *, whole_model: bool) -> Disk:
        """An empty disk, or one with the checkpoint."""
        return Disk(next(self._serials), self.expert_bytes, whole_model=whole_model)

    def start(self, name: NodeId, disk: Disk, *, moves: bool = False) -> SimNode:
        """Start a node, or its next life.

        Args:
            name: Which.
            disk: With what.
            moves: Whether it listens elsewhere than its last life.
        """
        self.last_change_s = self.clock.now
        box, last = self.boxes[name], self.nodes.get(name)
        state = None if disk.state is None else decode_state(disk.state)
        # A node whose disk is lost has only its wall clock to be later than its earlier lives.
        generation = next_generation(state, int((1e6 + self.clock.now + box.wall_ahead_s) * 1000))
        endpoints = last.endpoints if last is not None and not moves else Endpoints("10.0.0.1", next(self._ports))
        self.note(f"{name} starts as {generation} with {len(disk.whole_units())} units on disk")
        node = SimNode(self, name, generation, endpoints, box.capacity_bytes, disk, box.clock_rate)
        self.nodes[name] = self._listeners[endpoints] = node
        self.left.pop(name, None)
        others = [other for other in self.nodes if other != name]
        self.rng.shuffle(others)
        node.join(others)
        return node

    def crash(self, node: SimNode) -> None:
        """SIGKILL."""
        self.last_change_s = self.clock.now
        custody = set(node.custody.machine.custody) if node.custody is not None else set()
        self.note(f"{node.name} crashes with {len(custody)} experts in custody")
        node.process.end()
        self.checker.crashed(custody)
        self.checker.coverage()

    def departed(self, node: SimNode) -> None:
        """A node has said farewell; its process ends."""
        self.note(f"{node.name} has left, keeping {len(node.kept)} experts")
        self.last_change_s = self.clock.now
        self.left[node.name] = node
        node.process.end()
        self.checker.has_left(node)
        self.checker.coverage()

    # -- the network ------------------------------------------------------------

    def carry(self, sender: SimNode, peer: NodeId, endpoints: Endpoints, message: Message) -> None:
        """Bring a message to whoever listens at ``endpoints`` when it arrives."""
        if message is not self._last_packed[0]:  # the same message to several peers is packed once
            self._last_packed = (message, msgspec.msgpack.encode(message))
        packed, kind = self._last_packed[1], type(message)
        name, generation = sender.name, sender.generation

        def deliver() -> None:
            node = self._listeners[endpoints]
            if node.alive and node.name == peer:
                decoded = msgspec.msgpack.decode(packed, type=kind)
                self.checker.message(decoded)
                node.process.run(lambda: node.receive(name, generation, decoded))

        self.network.carry((name, peer), deliver)

    def carry_hello(self, newcomer: SimNode, peer: NodeId) -> None:
        """Bring a newcomer's introduction to the node that is called ``peer`` now."""

        def deliver() -> None:
            node = self.nodes[peer]
            node.process.run(lambda: node.hello(newcomer))

        self.network.carry((newcomer.name, peer), deliver)

    def carry_welcome(self, member: SimNode, newcomer: SimNode) -> None:
        """Bring the answer to an introduction."""
        who = (member.name, member.generation, member.endpoints)
        link = (member.name, newcomer.name)
        self.network.carry(link, lambda: newcomer.process.run(lambda: newcomer.welcome(*who)))

    def carry_request(self, asker: SimNode, endpoints: Endpoints, request: RequestPiece) -> None:
        """Bring a request for a piece of a unit."""

        def deliver() -> None:
            node = self._listeners[endpoints]
            node.process.run(lambda: node.serve(asker, request))

        self.network.carry((asker.name, request.peer), deliver)

    def carry_piece(self, server: SimNode, asker: SimNode, answer: PieceArrived | PieceFailed) -> None:
        """Bring a piece, or the word that there is none, to the life that asked for it."""

        def deliver() -> None:
            if asker.custody is not None:
                custody = asker.custody
                asker.process.run(lambda: custody.answered(answer))

        size_bytes = answer.length if isinstance(answer, PieceArrived) else 0
        self.network.carry((server.name, asker.name), deliver, size_bytes)
