"""The safety invariants, watched from outside while nodes run: what a node really has against what it says and does.

S1 is checked with the repair windows of the custody rule: a window of an expert opens when a custodian crashes and
closes when every wanted slot has a living custodian again and no question from before is out. `may_crash` tells the
chaos whom it may crash without breaking the assumption that S1 is made under; what is crashed beyond that is forgiven.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.custody import DEFAULT, CustodyEffect, Drop, LoadUnit, Tell, claim_of
from meshmoe.custody.claims import Claim
from meshmoe.custody.messages import ClaimAnswers, MigrationClaimed
from meshmoe.gossip.messages import GossipDelta, GossipPush
from meshmoe.membership import MemberDead, MemberLeft, MemberSuspect, Send

if TYPE_CHECKING:
    from meshmoe.sim.node import SimNode
    from meshmoe.sim.world import World

WINDOW_S = DEFAULT.ask_timeout_s / 0.9
"""By then the questions that were out are over, also by the slowest clock."""

CLAIMS_EVERY = 4
"""Looks until all claims seen are compared again: they rise or they do not, and looking takes time."""


class InvariantError(AssertionError):
    """An invariant does not hold; the message names it."""


class Checker:
    """One for each world."""

    def __init__(self, world: World) -> None:
        self.is_calm = False
        """Set when the mesh has settled without faults: from then on nobody may be accused."""
        self._world = world
        self._looks = 0
        self._kept: set[ExpertId] = set()
        """Experts that have had a custodian, and must have one from then on."""
        self._hit_s: dict[ExpertId, float] = {}
        self._forgiven_until_s: dict[ExpertId, float] = {}
        self._epochs: dict[tuple[NodeId, int, ExpertId, int], int] = {}
        self._seen: dict[tuple[NodeId, int], dict[ExpertId, tuple[Claim, ...]]] = {}
        self._written: dict[tuple[str, int, str, int], bytes | None] = {}
        self._farewells: set[tuple[NodeId, int]] = set()

    # -- what nodes do ------------------------------------------------------------

    def effect(self, node: SimNode, effect: CustodyEffect) -> None:
        """Custody is about to have something done."""
        assert node.custody is not None
        resident = node.custody.resident
        match effect:
            case Send(message=ClaimAnswers(answers=answers)):
                for answer in answers:
                    if answer.epoch is not None and ExpertId(answer.layer, answer.index) not in resident:
                        raise InvariantError(f"S2: {node.name} stands by {answer.layer}/{answer.index} without weights")
            case Send(message=MigrationClaimed(layer=layer, index=index)):
                if ExpertId(layer, index) not in resident:
                    raise InvariantError(f"S2: {node.name} claims {layer}/{index} without weights")
            case Tell(claims=claims):
                for value in claims:
                    for index, stamp in value.epoch_of().items():
                        slot, claim = claim_of(stamp, node.name, node.generation)
                        self._told(node, ExpertId(value.layer, index), slot, claim.epoch)
            case Drop(expert=expert):
                if expert in node.custody.machine.custody:
                    raise InvariantError(f"S1: {node.name} drops {expert}, which it has promised")
            case LoadUnit(expert=expert):
                if expert in node.custody.memory:
                    raise InvariantError(f"S3: {node.name} loads {expert} twice")

    def _told(self, node: SimNode, expert: ExpertId, slot: int, epoch: int) -> None:
        assert node.custody is not None
        if expert not in node.custody.resident:
            raise InvariantError(f"S2: {node.name} publishes a claim on {expert} without weights")
        key = (node.name, node.disk.serial, expert, slot)
        if epoch < self._epochs.get(key, 0):
            raise InvariantError(f"S4: {node.name} claims {expert} with epoch {epoch} after {self._epochs[key]}")
        self._epochs[key] = epoch

    def news(self, node: SimNode, effect: object) -> None:
        """Membership says something about somebody."""
        if isinstance(effect, MemberLeft):
            life = (effect.member.node, effect.member.generation)
            if life not in self._farewells:
                raise InvariantError(f"membership: {node.name} believes that {life[0]} has left, which it has not")
        if self.is_calm and isinstance(effect, MemberDead | MemberSuspect):
            raise InvariantError(f"membership: {node.name} accuses {effect.member.node}, and nothing is wrong")

    def message(self, message: Message) -> None:
        """A message arrives. S5: an entry has one writer, so one version of it has one value."""
        if isinstance(message, GossipPush | GossipDelta):
            for delta in message.deltas:
                for entry in delta.entries:
                    version = (delta.node, delta.generation, entry.key, entry.version)
                    if self._written.setdefault(version, entry.value) != entry.value:
                        raise InvariantError(f"S5: two values of {entry.key} of {delta.node}, version {entry.version}")

    def yielded(self, node: SimNode) -> None:
        """A node was told that a later life has its name."""
        raise InvariantError(f"membership: {node.name} is told to yield to a later life, and there is none")

    # -- what is so ------------------------------------------------------------

    def custody_changed(self, node: SimNode) -> None:
        """A node has made or released claims."""
        assert node.custody is not None
        self._keep(node.custody.machine.custody)
        self.coverage()

    def look(self) -> None:
        """Everything that can be seen at any moment."""
        self._looks += 1
        for node in self._world.living():
            if node.custody is not None:
                self._memory(node)
                if self._looks % CLAIMS_EVERY == 0:
                    self._claims_seen(node)
                self._keep(node.custody.machine.custody)
        self.coverage()

    def _keep(self, experts: Iterable[ExpertId]) -> None:
        now = self._world.clock.now
        self._kept |= {expert for expert in experts if now > self._forgiven_until_s.get(expert, -1.0)}

    def _memory(self, node: SimNode) -> None:
        assert node.custody is not None
        used_bytes = sum(self._world.expert_bytes[expert] for expert in node.custody.memory)
        if used_bytes > node.capacity_bytes or node.custody.machine.taken_bytes > node.capacity_bytes:
            raise InvariantError(f"S3: {node.name} uses {used_bytes} of {node.capacity_bytes} bytes")

    def _claims_seen(self, node: SimNode) -> None:
        assert node.custody is not None
        before = self._seen.setdefault((node.name, node.generation), {})
        for expert in self._world.expert_bytes:
            seen = node.custody.machine.record(expert).seen
            if any(now < then for now, then in zip(seen, before.get(expert, seen), strict=True)):
                raise InvariantError(f"S4: {node.name} has forgotten a claim on {expert}")
            before[expert] = seen

    def coverage(self) -> None:
        """S1, for every expert that ever had a custodian."""
        missing = self._kept - self._covered()
        if missing:
            raise InvariantError(f"S1: no living custodian of {', '.join(map(str, sorted(missing)))}")

    def _covered(self) -> set[ExpertId]:
        covered: set[ExpertId] = set()
        for node in self._world.living():
            if node.custody is not None:
                covered |= node.custody.custody().keys()
        return covered

    # -- what may be done to nodes ------------------------------------------------------------

    def crashed(self, experts: set[ExpertId]) -> None:
        """A custodian of these has just crashed."""
        for expert in experts:
            self._hit_s[expert] = self._world.clock.now

    def forgive(self, experts: Iterable[ExpertId]) -> None:
        """A custodian crashes beyond what is promised to be survived.

        These experts need not have a custodian, nor keep one that they have until answers of the dead are not believed
        any more.
        """
        for expert in experts:
            self._kept.discard(expert)
            self._forgiven_until_s[expert] = self._world.clock.now + WINDOW_S

    def has_left(self, node: SimNode) -> None:
        """A node has gone; what it could not hand over, and said so, is nobody's promise any more."""
        self._kept -= {expert for expert, _ in node.kept} - self._covered()

    def says_farewell(self, node: SimNode) -> None:
        """A node begins to say that it goes."""
        self._farewells.add((node.name, node.generation))

    def may_crash(self, victim: SimNode) -> bool:
        """Whether every expert of the victim keeps a custodian by the custody rule."""
        if victim.custody is None:
            return True
        living = [node.custody.machine for node in self._world.living() if node.custody is not None]
        others = [machine for machine in living if machine is not victim.custody.machine]
        for expert, slot in victim.custody.machine.custody.items():
            if self._world.clock.now - self._hit_s.get(expert, -1e9) <= WINDOW_S:
                return False
            slots = {machine.custody[expert] for machine in others if expert in machine.custody}
            if not slots - {slot}:
                return False
            for machine in living:
                record = machine.record(expert)
                if record.claim is not None and (
                    machine.slots_wanted(expert) == 1 or (record.ask is not None and record.ask.slot != record.slot)
                ):
                    return False  # one slot is thought enough: no crash is promised to be survived
        return True
