"""The parts of a node that talk to peers, wired to each other; they exist as soon as the node listens."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import msgspec
import trio

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.ids import NodeId
from meshmoe.membership import PRESETS, Doubted, MemberDead, MemberLeft
from meshmoe.node.addresses import advertised_host
from meshmoe.node.admission_driver import AdmissionDriver
from meshmoe.node.calls import CallTable
from meshmoe.node.custody_driver import CustodyDriver
from meshmoe.node.expert_client import ExpertClient
from meshmoe.node.expert_server import ExpertServer
from meshmoe.node.express import Express
from meshmoe.node.gossip_driver import GossipDriver
from meshmoe.node.joining import Greeter
from meshmoe.node.membership_driver import Change, MembershipDriver
from meshmoe.node.mesh import Mesh, RateMeter
from meshmoe.node.messenger import Messenger
from meshmoe.node.placement_driver import PlacementDriver
from meshmoe.node.security import Security
from meshmoe.node.settings import NodeSettings
from meshmoe.node.spot_check import SpotChecks
from meshmoe.node.unit_client import UnitClient
from meshmoe.node.unit_server import UnitServer
from meshmoe.transport.base import Transport


@dataclass(slots=True)
class Parts:
    """See the module's text; `wire_parts` makes it.

    Attributes:
        endpoints: Where peers reach this node.
        messenger: Typed messages in and out.
        calls: Questions to peers under way.
        membership: Who is here.
        gossip: Who knows what.
        mesh: Both, put into questions.
        custody: Keeps every expert; asleep until the model is known.
        placement: Decides who should hold what; asleep until the model is known.
        expert_client: Asks peers for expert outputs.
        expert_server: Answers such questions.
        unit_client: Fetches weights.
        unit_server: Serves them.
        greeter: Introduces this node.
        admission: Who belongs to the mesh; None in an insecure one.
        express: The compute thread's own way to peers; None until the engine runs.
    """

    endpoints: Endpoints
    messenger: Messenger
    calls: CallTable
    membership: MembershipDriver
    gossip: GossipDriver
    mesh: Mesh
    custody: CustodyDriver
    placement: PlacementDriver
    expert_client: ExpertClient
    expert_server: ExpertServer
    unit_client: UnitClient
    unit_server: UnitServer
    greeter: Greeter
    admission: AdmissionDriver | None
    express: Express | None = None

    async def run(self) -> None:
        """Run the tasks of all parts until cancelled."""
        async with trio.open_nursery() as nursery:
            for part in (self.messenger, self.membership, self.gossip, self.expert_server, self.unit_server):
                nursery.start_soon(part.run, name=type(part).__name__)
            if self.admission is not None:
                nursery.start_soon(self.admission.run, name="AdmissionDriver")

    def _connection_lost(self, peer: NodeId, lane: Lane) -> None:
        """What was asked over a broken connection may not have arrived: ask elsewhere now, not at the deadline."""
        if lane is Lane.DATA:
            self.calls.fail_peer(peer, "has lost its connection")
            self._tell_express(peer)
            self.membership.feed(Doubted(peer))

    def _tell_express(self, peer: NodeId) -> None:
        if self.express is not None:
            self.express.peer_gone(peer)

    def _member_changed(self, change: Change) -> None:
        if isinstance(change, MemberDead | MemberLeft):
            how = "died" if isinstance(change, MemberDead) else "left"
            self.calls.fail_peer(change.member.node, how)
            self._tell_express(change.member.node)
        self.gossip.feed(change)
        self.mesh.announce_change()


def wire_parts(
    settings: NodeSettings, generation: int, transport: Transport, rng: Random, security: Security | None
) -> Parts:
    """Make the parts of a node and connect them.

    Args:
        settings: Of the node.
        generation: Of this life.
        transport: Open.
        rng: The node's chance.
        security: Its keys; None for an insecure mesh.
    """
    toward = settings.peers[0].addresses[0][0] if settings.peers else None
    host = settings.advertise or advertised_host(transport.endpoints.host, toward)
    endpoints = msgspec.structs.replace(transport.endpoints, host=host)
    messenger, calls, rates = Messenger(transport), CallTable(), RateMeter()
    preset = PRESETS[settings.membership]
    membership = MembershipDriver(messenger, preset, settings.node, generation, endpoints, rng)
    admission = None
    if security is not None:
        admission = AdmissionDriver(security, messenger, membership, generation, rng)
        security.heard_now = lambda node: transport.connected(node, Lane.CONTROL)
    gossip = GossipDriver(messenger, settings.node, generation, rng)
    mesh = Mesh(settings.node, gossip.view, membership.machine, rates)
    expert_client = ExpertClient(messenger, calls, mesh, hedge=settings.hedge)
    if settings.spot_check:
        expert_client.spot_checks = SpotChecks(settings.spot_check, Random(rng.getrandbits(64)))
        expert_client.spot_checks.recompute = expert_client.recompute
    parts = Parts(
        endpoints=endpoints,
        messenger=messenger,
        calls=calls,
        membership=membership,
        gossip=gossip,
        mesh=mesh,
        custody=CustodyDriver(messenger, gossip, mesh, expert_client.latency.take_p99_s),
        placement=PlacementDriver(messenger, gossip, mesh, settings.links),
        expert_client=expert_client,
        expert_server=ExpertServer(messenger, mesh, settings.node),
        unit_client=UnitClient(messenger, calls, rates.observe),
        unit_server=UnitServer(messenger),
        greeter=Greeter(messenger, admission),
        admission=admission,
    )
    parts.placement.on_settled = parts.custody.follow
    membership.on_change.append(parts._member_changed)
    gossip.on_view_change = mesh.announce_change
    transport.on_lost(parts._connection_lost)
    parts.expert_client.lost = parts.custody.lost.__contains__
    return parts
