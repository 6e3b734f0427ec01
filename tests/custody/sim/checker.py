"""The invariants, watched from outside while nodes run: what a node really has against what it says and does.

S1 is checked with the repair windows of the custody rule: a window of an expert opens when a custodian crashes and
closes when every wanted slot has a living custodian again and no question from before is out. `may_crash` tells the
chaos whom it may crash without breaking the assumption that S1 is made under.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import CustodyEffect, Drop, LoadUnit, Tell
from meshmoe.custody.claims import claim_of
from meshmoe.custody.messages import ClaimAnswers, MigrationClaimed
from meshmoe.membership import Send

if TYPE_CHECKING:
    from tests.custody.sim.node import SimNode
    from tests.custody.sim.world import World


class InvariantError(AssertionError):
    """An invariant does not hold; the message names it."""


class Checker:
    """One for each world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kept: set[ExpertId] = set()
        """Experts that have had a custodian, and must have one from then on."""
        self._hit_s: dict[ExpertId, float] = {}
        self._epochs: dict[tuple[NodeId, int, ExpertId, int], int] = {}

    def effect(self, node: SimNode, effect: CustodyEffect) -> None:
        """Something is about to be done."""
        match effect:
            case Send(message=ClaimAnswers(answers=answers)):
                for answer in answers:
                    if answer.epoch is not None and ExpertId(answer.layer, answer.index) not in node.resident:
                        raise InvariantError(f"S2: {node.name} stands by {answer.layer}/{answer.index} without weights")
            case Send(message=MigrationClaimed(layer=layer, index=index)):
                if ExpertId(layer, index) not in node.resident:
                    raise InvariantError(f"S2: {node.name} claims {layer}/{index} without weights")
            case Tell(claims=claims):
                for value in claims:
                    for index, stamp in value.epoch_of().items():
                        slot, claim = claim_of(stamp, node.name, node.generation)
                        self._told(node, ExpertId(value.layer, index), slot, claim.epoch)
            case Drop(expert=expert):
                if expert in node.machine.custody:
                    raise InvariantError(f"S1: {node.name} drops {expert}, which it has promised")
            case LoadUnit(expert=expert):
                if expert in node.memory:
                    raise InvariantError(f"S3: {node.name} loads {expert} twice")

    def _told(self, node: SimNode, expert: ExpertId, slot: int, epoch: int) -> None:
        if expert not in node.resident:
            raise InvariantError(f"S2: {node.name} publishes a claim on {expert} without weights")
        key = (node.name, node.disk.serial, expert, slot)
        if epoch < self._epochs.get(key, 0):
            raise InvariantError(f"S4: {node.name} claims {expert} with epoch {epoch} after {self._epochs[key]}")
        self._epochs[key] = epoch

    def node(self, node: SimNode) -> None:
        """A node has done what there was to do."""
        used_bytes = sum(self._world.expert_bytes[expert] for expert in node.memory)
        if used_bytes > node.capacity_bytes or node.machine.taken_bytes > node.capacity_bytes:
            raise InvariantError(f"S3: {node.name} uses {used_bytes} of {node.capacity_bytes} bytes")
        self._kept |= node.machine.custody.keys()
        self.coverage()

    def coverage(self) -> None:
        """S1, for every expert that ever had a custodian."""
        covered: set[ExpertId] = set()
        for node in self._world.living():
            covered |= node.machine.custody.keys() & node.resident
        if not self._kept <= covered:
            missing = sorted(self._kept - covered)
            raise InvariantError(f"S1: no living custodian of {', '.join(map(str, missing))}")

    def crashed(self, experts: set[ExpertId]) -> None:
        """A custodian of these has just crashed."""
        for expert in experts:
            self._hit_s[expert] = self._world.clock.now

    def forgive(self, experts: set[ExpertId]) -> None:
        """These were lost beyond what was promised: nobody is custodian of them for now."""
        self._kept -= experts

    def may_crash(self, victim: SimNode) -> bool:
        """Whether every expert of the victim keeps a custodian by the custody rule."""
        now = self._world.clock.now
        others = [node for node in self._world.living() if node is not victim]
        for expert, slot in victim.machine.custody.items():
            if now - self._hit_s.get(expert, -1e9) <= self._world.config.ask_timeout_s:
                return False
            slots = {node.machine.custody[expert] for node in others if expert in node.machine.custody}
            if not slots - {slot}:
                return False
            for node in self._world.living():
                record = node.machine._desk.book[expert]
                if record.claim is not None and (
                    node.machine._desk.plan.slots(expert) == 1 or (record.ask and record.ask.slot != record.slot)
                ):
                    return False  # one slot is thought enough: no crash is promised to be survived
        return True
