"""One simulated node: the custody machine of the product, and a runtime of memory, disk, gossip and time around it.

Gossip is a stand-in: every node sends its own entry to everybody twice a second, and at once when its claims change; a
node is present for another one that has heard of it within `DEAD_S`. So partitions make false deaths, and views lag.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import TYPE_CHECKING

import msgspec

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import (
    CustodyEffect,
    CustodyEvent,
    CustodyMachine,
    CustodyState,
    Drop,
    Dropped,
    Found,
    LeaveFinished,
    Life,
    LoadUnit,
    Lost,
    OnDisk,
    OpenUnit,
    Persist,
    PieceArrived,
    PieceFailed,
    RequestPiece,
    StorePiece,
    Tell,
    UnitFailed,
    UnitLoaded,
    UnitOpened,
    ViewChanged,
    decode_state,
)
from meshmoe.gossip import Holdings, NodeInfo, NodeView
from meshmoe.gossip.values import Load
from meshmoe.membership import Received, Send, Tick

if TYPE_CHECKING:
    from tests.custody.sim.world import World

DEAD_S = 5.0
GOSSIP_S = 0.5
MODEL_DIGEST = "5a" * 20


_serials = count(1)


class Disk:
    """What survives a crash: the state file and the prefixes of units."""

    def __init__(self) -> None:
        self.serial = next(_serials)
        """Tells this disk from every other one, also from those of nodes that had the same name."""
        self.state: bytes | None = None
        self.stored_bytes: dict[ExpertId, int] = {}


class SimNode:
    """One life of one node."""

    def __init__(self, world: World, name: NodeId, generation: int, capacity_bytes: int, disk: Disk) -> None:
        self.world = world
        self.name = name
        self.generation = generation
        self.capacity_bytes = capacity_bytes
        self.disk = disk
        self.alive = True
        self.paused = False
        self.left: LeaveFinished | None = None
        self.memory: set[ExpertId] = set()
        """Experts that take room: resident, loading, or being dropped."""
        self.resident: set[ExpertId] = set()
        self.lost: set[ExpertId] = set()
        """Experts reported as lost."""
        self.heard: dict[NodeId, tuple[float, int, NodeView]] = {}
        self._version = 0
        self._view = NodeView(name, generation)
        self._shown: dict[NodeId, NodeView] = {}
        self._inbox: deque[CustodyEvent] = deque()
        self._tick_at_s = float("inf")
        self._leaving = False
        state = None
        if disk.state is not None:
            state = decode_state(disk.state)
        self.machine = CustodyMachine(
            world.config,
            Life(name, generation),
            MODEL_DIGEST,
            world.expert_bytes,
            capacity_bytes,
            state,
            world.clock.now,
            world.rule,
        )
        self.feed(OnDisk(self.whole_units()))
        self._gossip()

    # -- driving the machine ------------------------------------------------------------

    def feed(self, event: CustodyEvent) -> None:
        """Hand an event to the machine now; or later, if the process stands still."""
        if not self.alive:
            return
        if self.paused:
            self._inbox.append(event)
            return
        effects = self.machine.handle(event, self.world.clock.now)
        for effect in effects:
            self.world.checker.effect(self, effect)
            self._carry_out(effect)
        self.world.checker.node(self)
        self._set_timer()

    def pause(self, duration_s: float) -> None:
        """SIGSTOP for a while."""
        self.paused = True
        self.world.clock.after(duration_s, self._resume)

    def crash(self) -> None:
        """Lose everything but the disk."""
        self.alive = False
        self.memory.clear()
        self.resident.clear()

    def leaving(self) -> None:
        """Say in gossip that this node will go."""
        self._leaving = True
        self._tell()

    def _resume(self) -> None:
        self.paused = False
        self._look_around()
        while self._inbox and not self.paused and self.alive:
            self.feed(self._inbox.popleft())

    def _set_timer(self) -> None:
        when_s = self.machine.next_deadline()
        if when_s < self._tick_at_s and when_s < float("inf"):
            self._tick_at_s = when_s
            self.world.clock.at(when_s, self._tick)

    def _tick(self) -> None:
        if self.world.clock.now >= self._tick_at_s:
            self._tick_at_s = float("inf")
            self.feed(Tick())
            if self.paused:
                self._tick_at_s = float("inf")

    # -- effects ------------------------------------------------------------

    def _carry_out(self, effect: CustodyEffect) -> None:
        world, disk = self.world, self.disk
        match effect:
            case Persist(state=state):
                assert isinstance(state, CustodyState)
                disk.state = state.encode()
            case Tell(claims=claims):
                layers = dict(self._view.claims)
                for value in claims:
                    layers[value.layer] = value.epoch_of()
                self._view = msgspec.structs.replace(self._view, claims=layers)
                self._tell()
            case Send(peer=peer, message=message):
                again = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))
                event = Received(self.name, self.generation, again)
                world.network.carry(self.name, peer, lambda: world.deliver(peer, event))
            case OpenUnit(expert=expert):
                stored = UnitOpened(expert, disk.stored_bytes.get(expert, 0), world.unit_bytes)
                world.clock.after(0.001, lambda: self.feed(stored))
            case RequestPiece():
                self._request(effect)
            case StorePiece(expert=expert, offset=offset):
                assert disk.stored_bytes.get(expert, 0) == offset, "a piece out of order"
                disk.stored_bytes[expert] = min(world.unit_bytes, offset + world.config.piece_bytes)
                if disk.stored_bytes[expert] == world.unit_bytes:
                    self.feed_soon(OnDisk(self.whole_units()))
            case LoadUnit(expert=expert):
                assert disk.stored_bytes[expert] == world.unit_bytes
                self.memory.add(expert)
                world.clock.after(world.rng.uniform(0.01, 0.2), lambda: self._load(expert))
            case Drop(expert=expert):
                self.resident.discard(expert)
                world.clock.after(world.rng.uniform(0.0, 0.5), lambda: self._dropped(expert))
                self._tell()
            case Lost(expert=expert):
                self.lost.add(expert)
            case Found(expert=expert):
                self.lost.discard(expert)
            case LeaveFinished():
                self.left = effect
            case _:
                pass

    def feed_soon(self, event: CustodyEvent) -> None:
        """Hand an event to the machine after the present one."""
        self.world.clock.after(0.0, lambda: self.feed(event))

    def _request(self, request: RequestPiece) -> None:
        world = self.world

        def serve() -> None:
            peer = world.nodes.get(request.peer)
            if peer is None or not peer.alive or peer.paused:
                return
            if peer.disk.stored_bytes.get(request.expert) != world.unit_bytes:
                answer: CustodyEvent = PieceFailed(request.expert, request.peer)
            else:
                answer = PieceArrived(request.expert, request.peer, request.offset, request.length)
            delay_s = request.length / world.rate_bytes_per_s
            life = self.generation
            world.network.carry(
                request.peer, self.name, lambda: world.deliver(self.name, answer, life), bytes_delay_s=delay_s
            )

        world.network.carry(self.name, request.peer, serve)

    def _load(self, expert: ExpertId) -> None:
        if not self.alive:
            return
        if self.world.rng.random() < self.world.damage:
            self.memory.discard(expert)
            self.disk.stored_bytes.pop(expert, None)
            self.feed(OnDisk(self.whole_units()))
            self.feed(UnitFailed(expert, "digest"))
            return
        self.resident.add(expert)
        self.feed(UnitLoaded(expert))
        self._tell()

    def _dropped(self, expert: ExpertId) -> None:
        if self.alive:
            self.memory.discard(expert)
            self.feed(Dropped(expert))

    def whole_units(self) -> frozenset[ExpertId]:
        return frozenset(e for e, stored in self.disk.stored_bytes.items() if stored == self.world.unit_bytes)

    # -- gossip ------------------------------------------------------------

    def _gossip(self) -> None:
        """Twice a second: tell everybody, and see who has fallen silent."""
        if not self.alive:
            return
        if not self.paused:
            self._tell()
            self._look_around()
        self.world.clock.after(GOSSIP_S * self.world.rng.uniform(0.8, 1.2), self._gossip)

    def _tell(self) -> None:
        world = self.world
        by_layer: dict[int, set[int]] = {layer: set() for layer in {e.layer for e in world.expert_bytes}}
        for expert in self.resident:
            by_layer[expert.layer].add(expert.index)
        holdings = {layer: Holdings.of(layer, indices).resident for layer, indices in by_layer.items()}
        info = NodeInfo(
            "leaving" if self._leaving else "serving",
            Endpoints("127.0.0.1", 1),
            "sim",
            capacity_bytes=self.capacity_bytes,
            stores_model=len(self.whole_units()) == len(world.expert_bytes),
        )
        load = Load(self.machine.free_bytes, self.machine.taken_bytes)
        holdings = {
            layer: self._view.holdings[layer] if self._view.holdings.get(layer) == bitmap else bitmap
            for layer, bitmap in holdings.items()
        }
        self._view = msgspec.structs.replace(self._view, info=info, load=load, holdings=holdings)
        self._version += 1
        version, view, name = self._version, self._view, self.name
        for peer in list(world.nodes):
            if peer != name:
                world.network.carry(name, peer, lambda peer=peer: world.gossip(peer, version, view))

    def hear(self, version: int, view: NodeView) -> None:
        """Another node's entry came in."""
        known = self.heard.get(view.node)
        if known is None or (view.generation, version) > (known[2].generation, known[1]):
            self.heard[view.node] = (self.world.clock.now, version, view)
            if not self.paused:
                self._look_around()
        elif (view.generation, version) == (known[2].generation, known[1]):
            self.heard[view.node] = (self.world.clock.now, version, known[2])

    def forget(self, node: NodeId) -> None:
        """A node has said farewell."""
        self.heard.pop(node, None)
        self._look_around()

    def _look_around(self) -> None:
        now = self.world.clock.now
        shown = {node: view for node, (at_s, _, view) in self.heard.items() if now - at_s < DEAD_S}
        if shown != self._shown:
            self._shown = shown
            self.feed(ViewChanged(dict(shown)))
