"""One simulated node: the machines of the product, wired as `meshmoe.node` wires them, on a virtual process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.custody import (
    CUSTODY_MESSAGES,
    DEFAULT,
    CustodyEffect,
    CustodyMachine,
    Leave,
    LeaveFinished,
    Life,
    PieceArrived,
    PieceFailed,
    RequestPiece,
    ViewChanged,
    decode_state,
)
from meshmoe.gossip import GOSSIP_MESSAGES, Claims, Load, NodeInfo
from meshmoe.membership import MEMBERSHIP_MESSAGES, Learned, LocalHealth, Received
from meshmoe.membership import Leave as Farewell
from meshmoe.sim.custody_part import CustodyPart
from meshmoe.sim.disk import Disk
from meshmoe.sim.mesh_part import MeshPart
from meshmoe.sim.process import Process

if TYPE_CHECKING:
    from meshmoe.sim.world import World

MODEL_DIGEST = "5a" * 20
HELLO_S = 0.5
GREET_AGAIN_S = 20.0
REPORT_S = 1.0
LAG_PROBE_S = 0.5


Phase = Literal["joining", "serving", "leaving", "parting", "gone"]


class SimNode:
    """One life of one node."""

    def __init__(
        self,
        world: World,
        name: NodeId,
        generation: int,
        endpoints: Endpoints,
        capacity_bytes: int,
        disk: Disk,
        rate: float,
    ) -> None:
        """Start the process.

        Args:
            world: Where it lives.
            name: Its name.
            generation: Of this life.
            endpoints: Where it listens.
            capacity_bytes: Its budget for experts.
            disk: Its disk.
            rate: Of its clock.
        """
        self.world = world
        self.name = name
        self.generation = generation
        self.endpoints = endpoints
        self.capacity_bytes = capacity_bytes
        self.disk = disk
        self.process = Process(world.clock, world.rng, rate)
        self.connections: dict[NodeId, Endpoints] = {}
        self.phase: Phase = "joining"
        self._peers: list[NodeId] = []
        self.kept: tuple[tuple[ExpertId, str], ...] = ()
        """What a leave could not hand over."""
        self.mesh = MeshPart(self.process, self, name, generation, endpoints, world.rng)
        self.custody: CustodyPart | None = None
        self._view_is_news = False
        self._report()
        self._measure_lag()

    @property
    def alive(self) -> bool:
        """Whether the process exists, running or paused."""
        return self.process.alive

    # -- joining and leaving ------------------------------------------------------------

    def join(self, peers: list[NodeId]) -> None:
        """Say hello to one peer after the other until one answers; with no peers, begin a mesh."""
        self._peers = self._peers or peers
        if not peers:
            self._begin()
        elif self.phase == "joining":
            peer, *others = peers
            self.world.carry_hello(self, peer)
            self.process.after(HELLO_S, lambda: self.join([*others, peer]))

    def hello(self, newcomer: SimNode) -> None:
        """A newcomer introduces itself."""
        if self.phase != "gone":
            self.mesh.feed(Learned(newcomer.name, newcomer.generation, newcomer.endpoints))
            self.world.carry_welcome(self, newcomer)

    def welcome(self, node: NodeId, generation: int, endpoints: Endpoints) -> None:
        """A member has answered."""
        self.mesh.feed(Learned(node, generation, endpoints))
        if self.phase == "joining":
            self._begin()
            self.process.after(GREET_AGAIN_S, self._greet_again)

    def _greet_again(self) -> None:
        """Say hello to peers that are not present here: they may be a mesh apart (`meshmoe.node.node`)."""
        if self.phase == "serving":
            members = self.mesh.membership.members
            for peer in self._peers:
                if peer not in members or not members[peer].state.present:
                    self.world.carry_hello(self, peer)
            self.process.after(GREET_AGAIN_S, self._greet_again)

    def leave(self) -> None:
        """`meshmoe leave`: hand everything over, say farewell, end."""
        if self.phase == "serving" and self.custody is not None:
            self.phase = "leaving"
            self._publish_info()
            self.custody.feed(Leave())

    def handed_over(self, finished: LeaveFinished) -> None:
        """Custody has given what it could."""
        self.kept = finished.kept
        self.phase = "parting"
        self.world.last_change_s = self.world.clock.now
        self.world.checker.says_farewell(self)
        self.mesh.feed(Farewell())

    def farewell_said(self) -> None:
        """All is done."""
        self.phase = "gone"
        self.world.departed(self)

    def yields(self) -> None:
        """Another life has this name."""
        self.world.checker.yielded(self)

    def _begin(self) -> None:
        """Take part: the model is known, custody begins."""
        self.phase = "serving"
        world = self.world
        machine = CustodyMachine(
            DEFAULT,
            Life(self.name, self.generation),
            MODEL_DIGEST,
            world.expert_bytes,
            self.capacity_bytes,
            None if self.disk.state is None else decode_state(self.disk.state),
            self.process.now_s,
            world.rule,
        )
        self.custody = CustodyPart(self.process, self, machine, self.disk, world.expert_bytes, world.rng)
        self.mesh.on_view_change = self._view_changed
        self._view_changed()
        self._publish_info()

    # -- in and out ------------------------------------------------------------

    def connect(self, peer: NodeId, endpoints: Endpoints) -> None:
        """Open or re-point a connection."""
        self.connections[peer] = endpoints

    def disconnect(self, peer: NodeId) -> None:
        """Close a connection."""
        del self.connections[peer]

    def send(self, peer: NodeId, message: Message, *, must_be_connected: bool) -> None:
        """Post on the control lane."""
        endpoints = self.connections.get(peer)
        if endpoints is None:
            assert not must_be_connected, f"{self.name} sends {type(message).__name__} to {peer}, unconnected"
            return
        self.world.carry(self, peer, endpoints, message)

    def receive(self, sender: NodeId, generation: int, message: Message) -> None:
        """A message has come in; see `Process.run` for when it is handled."""
        received = Received(sender, generation, message)
        if isinstance(message, MEMBERSHIP_MESSAGES):
            self.mesh.feed(received)
        elif isinstance(message, GOSSIP_MESSAGES):
            self.mesh.tell(received)
        elif isinstance(message, CUSTODY_MESSAGES) and self.custody is not None:
            self.custody.feed(received)

    def request(self, request: RequestPiece) -> None:
        """Ask a peer for a piece of a unit, on the bulk lane."""
        endpoints = self.connections.get(request.peer)
        if endpoints is None:
            assert self.custody is not None
            self.custody.feed(PieceFailed(request.expert, request.peer))
        else:
            self.world.carry_request(self, endpoints, request)

    def serve(self, asker: SimNode, request: RequestPiece) -> None:
        """A peer asks for a piece."""
        answer: PieceArrived | PieceFailed = PieceFailed(request.expert, self.name)
        if self.disk.has(request.expert):
            answer = PieceArrived(request.expert, self.name, request.offset, request.length)
        self.world.carry_piece(self, asker, answer)

    def heard(self, effect: object) -> None:
        """For the log and the checker: news of membership."""
        self.world.checker.news(self, effect)

    def doing(self, effect: CustodyEffect) -> None:
        """For the checker: an effect of custody."""
        self.world.checker.effect(self, effect)

    def custody_changed(self) -> None:
        """For the checker: claims were made or released."""
        self.world.checker.custody_changed(self)

    def is_damaged(self) -> bool:
        """Whether the unit that is now verified has a wrong digest."""
        return self.world.rng.random() < self.world.damage

    # -- telling the mesh ------------------------------------------------------------

    def publish_claims(self, claims: tuple[Claims, ...]) -> None:
        """Claims, urgently."""
        self.mesh.publish(*claims)

    def publish_memory(self) -> None:
        """What is resident, and what room that leaves."""
        if self.custody is not None:
            machine = self.custody.machine
            self.mesh.publish_holdings(self.custody.resident)
            self.mesh.publish(Load(machine.free_bytes, machine.taken_bytes))

    def _publish_info(self) -> None:
        info = NodeInfo(
            _TOLD[self.phase],
            self.endpoints,
            "sim",
            MODEL_DIGEST,
            self.capacity_bytes,
            stores_model=len(self.disk.whole_units()) == len(self.world.expert_bytes),
        )
        self.mesh.publish(info)

    def _report(self) -> None:
        """Regularly."""
        if self.phase != "gone":
            self._publish_info()
            self.publish_memory()
            self.process.after(REPORT_S, self._report)

    def _measure_lag(self) -> None:
        """What `MembershipDriver` measures: how late the loop is."""
        if self.process.lag_s > 0.05:
            self.mesh.feed(LocalHealth(self.process.lag_s))
        self.process.after(LAG_PROBE_S, self._measure_lag)

    def _view_changed(self) -> None:
        if not self._view_is_news:
            self._view_is_news = True
            self.process.after(0.0, self._show_view)

    def _show_view(self) -> None:
        self._view_is_news = False
        assert self.custody is not None
        self.custody.feed(ViewChanged(dict(self.mesh.gossip.view.nodes)))


_TOLD: dict[Phase, Literal["starting", "serving", "leaving"]] = {
    "joining": "starting",
    "serving": "serving",
    "leaving": "leaving",
    "parting": "leaving",
    "gone": "leaving",
}
