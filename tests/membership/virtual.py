"""A deterministic virtual network for machines without I/O: discrete events on one virtual clock.

It drives the real machines (`Membership`, and `Gossip` beside it where wanted) the way the node's runtime does:
effects in order, a tick at the earliest deadline, a `Send` only after a `Connect`. All chance comes from one seed, so
a run is repeated exactly by its seed; the command for that is printed, and pytest shows it when the test fails.

Faults: delay and its jitter, loss, duplication, partitions (also one way), crash, pause (SIGSTOP: messages wait, time
goes on) and restart under the same name. Bytes are those of msgpack as `meshmoe.wire` packs it.
"""

from __future__ import annotations

import heapq
import itertools
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgpack
import msgspec

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.core.messages import Message
from meshmoe.gossip import GOSSIP_MESSAGES, Gossip, GossipConfig
from meshmoe.membership import (
    LAN,
    Connect,
    Disconnect,
    Learned,
    Leave,
    LeaveFinished,
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLeft,
    Membership,
    MembershipConfig,
    MemberState,
    MemberSuspect,
    Received,
    Send,
    Tick,
)

NOTICES = (MemberAlive, MemberSuspect, MemberDead, MemberLeft, MemberForgotten)
VERSION_BYTES = 3
"""``"v": 1``, which the codec adds to every message."""


def wire_bytes(message: Message) -> int:
    """Bytes of a message on the wire."""
    return len(msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,), str_keys=True))) + VERSION_BYTES


def through_the_wire(message: Message) -> Message:
    """The message as its receiver decodes and validates it."""
    packed = msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,), str_keys=True))
    return msgspec.convert(msgpack.unpackb(packed), type(message), builtin_types=(bytes,), str_keys=True)


@dataclass
class Path:
    """How messages fare from one node to another; the default is a quiet LAN."""

    delay_s: float = 0.0005
    jitter_s: float = 0.0005
    loss: float = 0.0
    duplication: float = 0.0


@dataclass
class Seen:
    """One effect that a node emitted."""

    at_s: float
    node: NodeId
    effect: Any


@dataclass
class VirtualNode:
    """One life of a node."""

    node: NodeId
    generation: int
    endpoints: Endpoints
    membership: Membership
    gossip: Gossip | None = None
    connections: dict[NodeId, Endpoints] = field(default_factory=dict)
    waiting: list[tuple[NodeId, int, Message]] = field(default_factory=list)
    running: bool = True
    paused: bool = False
    wake_at_s: float = float("inf")
    sent_bytes: Counter[str] = field(default_factory=Counter)
    sent_messages: Counter[str] = field(default_factory=Counter)

    @property
    def active(self) -> bool:
        return self.running and not self.paused


class VirtualNet:
    """See the module's text."""

    def __init__(
        self,
        seed: int,
        *,
        membership: MembershipConfig = LAN,
        gossip: GossipConfig | None = None,
        path: Path | None = None,
        validate: bool = False,
        weigh: bool = True,
    ) -> None:
        """Make an empty network.

        Args:
            seed: Of all chance.
            membership: Config of every node.
            gossip: Config of every node's gossip; None for membership alone.
            path: Between all nodes, unless `paths` says otherwise.
            validate: Pass every message through msgpack and validation.
            weigh: Count bytes; without that a run takes a fifth less time.
        """
        self.seed = seed
        self.rng = Random(seed)
        self.now = 100.0
        self.path = path or Path()
        self.paths: dict[tuple[NodeId, NodeId], Path] = {}
        self.blocked: Callable[[NodeId, NodeId], bool] = lambda sender, receiver: False
        self.nodes: dict[NodeId, VirtualNode] = {}
        self.log: list[Seen] = []
        self.total_messages = 0
        self._last_sized: tuple[Message | None, int] = (None, 0)
        self._membership_config = membership
        self._gossip_config = gossip
        self._validate = validate
        self._weigh = weigh
        self._at: dict[Endpoints, VirtualNode] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._ports = itertools.count(1)
        test = os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)")
        if test:
            sys.stdout.write(f"seed {seed}; replay: .venv/bin/python -m pytest '{test}'\n")

    # -- nodes ------------------------------------------------------------

    def start(self, name: str, *, generation: int | None = None, same_place: bool = False) -> VirtualNode:
        """Start a node that knows nobody: a later life if the name was used before, at new endpoints or the same."""
        node = NodeId(name)
        earlier = self.nodes.get(node)
        if generation is None:
            generation = int(self.now * 1000) if earlier is None else max(earlier.generation + 1, int(self.now * 1000))
        endpoints = earlier.endpoints if earlier and same_place else Endpoints("10.0.0.1", next(self._ports) % 65536)
        rng = Random(self.rng.random())
        membership = Membership(self._membership_config, node, generation, endpoints, rng, self.now)
        gossip = None
        if self._gossip_config is not None:
            gossip = Gossip(self._gossip_config, node, generation, Random(self.rng.random()), self.now)
        fresh = VirtualNode(node, generation, endpoints, membership, gossip)
        self.nodes[node] = self._at[endpoints] = fresh
        self._rearm(fresh)
        return fresh

    def introduce(self, newcomer: VirtualNode, member: VirtualNode) -> None:
        """Hello and Welcome: the two learn of each other."""
        self.feed(member, Learned(newcomer.node, newcomer.generation, newcomer.endpoints))
        self.feed(newcomer, Learned(member.node, member.generation, member.endpoints))

    def mesh(self, count: int, *, settle_s: float = 10.0) -> list[VirtualNode]:
        """Start ``count`` nodes that all know each other, and let them run without faults for a while."""
        nodes = [self.start(f"node-{index:03d}") for index in range(count)]
        for newcomer in nodes[1:]:
            self.introduce(newcomer, nodes[0])
        path, self.path = self.path, Path()
        self.run(settle_s)
        self.path = path
        assert all(node.membership.size == count for node in nodes), "the mesh has not formed"
        return nodes

    def crash(self, node: VirtualNode) -> None:
        """SIGKILL."""
        node.running = False

    def pause(self, node: VirtualNode) -> None:
        """SIGSTOP."""
        node.paused = True

    def resume(self, node: VirtualNode) -> None:
        """SIGCONT: what waits in the sockets is read, and late timers fire, in a random order as in a real loop."""
        node.paused = False
        waiting, node.waiting = node.waiting, []
        first_tick = self.rng.random() < 0.5
        if first_tick:
            self._wake(node)
        for sender, generation, message in waiting:
            self._hand_over(node, Received(sender, generation, message))
        if not first_tick:
            self._wake(node)

    def leave(self, node: VirtualNode) -> None:
        """`meshmoe leave`."""
        self.feed(node, Leave())

    def partition(self, *groups: Iterable[VirtualNode]) -> None:
        """Only nodes of one group hear each other; `heal` ends it."""
        group_of = {node.node: index for index, group in enumerate(groups) for node in group}
        self.blocked = lambda sender, receiver: group_of.get(sender) != group_of.get(receiver)

    def heal(self) -> None:
        """End all partitions."""
        self.blocked = lambda sender, receiver: False

    # -- time ------------------------------------------------------------

    def run(self, duration_s: float, *, until: Callable[[], bool] | None = None) -> bool:
        """Let virtual time pass; stops early, and returns True, once ``until`` holds."""
        end_s = self.now + duration_s
        while self._queue and self._queue[0][0] <= end_s:
            self.now, _, action = heapq.heappop(self._queue)
            action()
            if until is not None and until():
                return True
        self.now = end_s
        return until is not None and until()

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._queue, (self.now + delay_s, next(self._serial), action))

    # -- what was seen ------------------------------------------------------------

    def active(self) -> list[VirtualNode]:
        """Nodes that run now."""
        return [node for node in self.nodes.values() if node.active]

    def seen(self, kind: type[Any], *, of: VirtualNode | None = None, since_s: float = 0.0) -> list[Seen]:
        """Effects of one kind, of all nodes, about ``of``'s present life if given."""
        return [
            entry
            for entry in self.log
            if isinstance(entry.effect, kind)
            and entry.at_s >= since_s
            and (of is None or (entry.effect.member.node, entry.effect.member.generation) == (of.node, of.generation))
        ]

    def false_deaths(self, since_s: float = 0.0) -> list[Seen]:
        """Deaths that were declared of lives that still run."""
        alive = {(node.node, node.generation) for node in self.nodes.values() if node.running}
        deaths = self.seen(MemberDead, since_s=since_s)
        return [entry for entry in deaths if (entry.effect.member.node, entry.effect.member.generation) in alive]

    def believe(self, node: VirtualNode, state: MemberState | None) -> bool:
        """Whether all other active nodes hold a node for ``state`` (None: do not know it)."""
        for other in self.active():
            if other.node == node.node:
                continue
            member = other.membership.members.get(node.node)
            if (member.state if member is not None and member.generation == node.generation else None) != state:
                return False
        return True

    def converged(self) -> bool:
        """Whether all active nodes hold exactly the active nodes for alive."""
        lives = {node.node: node.generation for node in self.active()}
        return all(
            {m.node: m.generation for m in node.membership.members.values() if m.state is MemberState.ALIVE}
            | {node.node: node.generation}
            == lives
            for node in self.active()
        )

    # -- inside ------------------------------------------------------------

    def feed(self, node: VirtualNode, event: Any) -> None:
        """Give one event to a node's membership and carry out what it asks for."""
        if not node.running:
            return
        self._do(node, node.membership.handle(event, self.now))
        self._rearm(node)

    def tell(self, node: VirtualNode, event: Any) -> None:
        """Give one event to a node's gossip."""
        if not node.running:
            return
        assert node.gossip is not None
        self._do(node, node.gossip.handle(event, self.now))
        self._rearm(node)

    def _do(self, node: VirtualNode, effects: Iterable[Any]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self._send(node, peer, message)
                case Connect(peer, endpoints):
                    node.connections[peer] = endpoints
                case Disconnect(peer):
                    del node.connections[peer]
                case LeaveFinished():
                    self.log.append(Seen(self.now, node.node, effect))
                    node.running = False
                case _:
                    self.log.append(Seen(self.now, node.node, effect))
                    if node.gossip is not None and isinstance(effect, NOTICES):
                        self._do(node, node.gossip.handle(effect, self.now))

    def _send(self, sender: VirtualNode, peer: NodeId, message: Message) -> None:
        endpoints = sender.connections[peer]  # a KeyError here is a machine that sends before it connects
        tag = message.__struct_config__.tag
        self.total_messages += 1
        sender.sent_messages[tag] += 1
        if self._weigh:
            if message is not self._last_sized[0]:  # the same message to several peers is packed once
                self._last_sized = (message, wire_bytes(message))
            sender.sent_bytes[tag] += self._last_sized[1]
        path = self.paths.get((sender.node, peer), self.path)
        if self.rng.random() < path.loss or self.blocked(sender.node, peer):
            return
        if self._validate:
            decoded = through_the_wire(message)
            assert decoded == message
        for _ in range(2 if self.rng.random() < path.duplication else 1):
            delay_s = path.delay_s + self.rng.random() * path.jitter_s
            self.at(delay_s, lambda: self._deliver(endpoints, sender.node, sender.generation, message))

    def _deliver(self, endpoints: Endpoints, sender: NodeId, generation: int, message: Message) -> None:
        receiver = self._at[endpoints]
        if not receiver.running:
            return
        if receiver.paused:
            receiver.waiting.append((sender, generation, message))
        else:
            self._hand_over(receiver, Received(sender, generation, message))

    def _hand_over(self, node: VirtualNode, received: Received) -> None:
        if isinstance(received.message, GOSSIP_MESSAGES):
            self.tell(node, received)
        else:
            self.feed(node, received)

    def _rearm(self, node: VirtualNode) -> None:
        deadline_s = node.membership.next_deadline()
        if node.gossip is not None:
            deadline_s = min(deadline_s, node.gossip.next_deadline())
        if deadline_s == node.wake_at_s:
            return
        node.wake_at_s = deadline_s
        if deadline_s != float("inf"):
            heapq.heappush(
                self._queue,
                (max(deadline_s, self.now), next(self._serial), lambda: self._wake_at(node, deadline_s)),
            )

    def _wake_at(self, node: VirtualNode, deadline_s: float) -> None:
        if node.active and node.wake_at_s == deadline_s:
            self._wake(node)

    def _wake(self, node: VirtualNode) -> None:
        node.wake_at_s = float("-inf")
        if not node.active:
            return
        self.feed(node, Tick())
        if node.gossip is not None:
            self.tell(node, Tick())


def bytes_per_s(nodes: Iterable[VirtualNode], before: dict[NodeId, int], duration_s: float) -> list[float]:
    """What each node has sent a second since ``before`` (see `sent_by`)."""
    return [(sum(node.sent_bytes.values()) - before[node.node]) / duration_s for node in nodes]


def sent_by(nodes: Iterable[VirtualNode]) -> dict[NodeId, int]:
    """Bytes that each node has sent so far."""
    return defaultdict(int, {node.node: sum(node.sent_bytes.values()) for node in nodes})
