"""Custody as one machine without I/O: events and the time go in, effects come out, in the order to be carried out.

The parts share a desk (`meshmoe.custody.desk`). What an event changes puts experts on the agenda; after each event the
custodian reviews them until the agenda is empty, intakes start, questions go out, and what the book has noted is put
before everything else. The runtime's part::

    custody = CustodyMachine(DEFAULT, Life(node, generation), digest, expert_bytes, capacity_bytes, state, now)
    run(custody.handle(OnDisk(...), now))
    run(custody.handle(ViewChanged(dict(gossip.view.nodes)), now))    # whenever the view's version has grown
    run(custody.handle(Received(peer, generation, message), now))     # messages of CUSTODY_MESSAGES
    run(custody.handle(Tick(), now))                                  # at custody.next_deadline()

and `run` does what `meshmoe.custody.effects` says, in order, `Persist` to the end before what follows it. ``now`` is
a monotonic clock that goes on while the box sleeps (CLOCK_BOOTTIME on Linux), or answers could look younger than they
are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.custody.agenda import Agenda
from meshmoe.custody.book import Book
from meshmoe.custody.claims import Custody, Life
from meshmoe.custody.config import CustodyConfig
from meshmoe.custody.custodian import Custodian
from meshmoe.custody.desk import Desk
from meshmoe.custody.donor import Donors
from meshmoe.custody.easing import Easing
from meshmoe.custody.effects import CustodyEffect, Drop
from meshmoe.custody.events import (
    CustodyEvent,
    Dropped,
    Give,
    Leave,
    OnDisk,
    PieceArrived,
    PieceFailed,
    Planned,
    SetCapacity,
    SetRate,
    UnitFailed,
    UnitLoaded,
    UnitOpened,
    ViewChanged,
    Want,
)
from meshmoe.custody.farewell import Farewell
from meshmoe.custody.intake import Intakes
from meshmoe.custody.ledger import Ledger
from meshmoe.custody.messages import (
    ClaimAnswers,
    ClaimQuestions,
    MigrationAcked,
    MigrationCancelled,
    MigrationClaimed,
    MigrationOffer,
    MigrationRefused,
    MigrationReserved,
)
from meshmoe.custody.migration import Donation, Reception
from meshmoe.custody.questions import Questions
from meshmoe.custody.receiver import Receivers
from meshmoe.custody.relocation import Relocation
from meshmoe.custody.rule import CustodyRule
from meshmoe.custody.slots import plan_slots, planned_slots
from meshmoe.custody.state import CustodyState
from meshmoe.custody.survey import Survey
from meshmoe.membership import Received, Tick


class CustodyMachine:
    """One node's part in keeping every expert. See the module's text for how to drive it."""

    def __init__(
        self,
        config: CustodyConfig,
        life: Life,
        model_digest: str,
        expert_bytes: Mapping[ExpertId, int],
        capacity_bytes: int,
        state: CustodyState | None,
        now: float,
        rule: CustodyRule | None = None,
    ) -> None:
        """Start with nothing resident.

        Args:
            config: See `meshmoe.custody.config`; the same on all nodes.
            life: This node's name and generation (`meshmoe.custody.state.next_generation`).
            model_digest: Of the model that the mesh serves.
            expert_bytes: Room that each expert of the model takes when resident.
            capacity_bytes: This node's budget for experts.
            state: What an earlier life left on disk; None if nothing usable.
            now: Monotonic seconds.
            rule: The custody rule; only tests give another one.
        """
        book = Book(life, model_digest, expert_bytes, rule or CustodyRule(), state)
        plan = plan_slots(expert_bytes, {life.node: capacity_bytes}, config.slots)
        ledger = Ledger(capacity_bytes)
        self._desk = Desk(config, expert_bytes, book, ledger, Survey(life.node), Agenda(), plan, now)
        self._capacities: dict[NodeId, int] = {life.node: capacity_bytes}
        self._planned: Mapping[ExpertId, tuple[NodeId, ...]] = {}
        self._questions = Questions(self._desk)
        self._intakes = Intakes(self._desk)
        self._custodian = Custodian(self._desk, self._intakes, self._questions)
        self._donors = Donors(self._desk, self._questions)
        self._receivers = Receivers(self._desk, self._intakes, self._custodian)
        self._farewell = Farewell(self._desk, self._donors)
        self._easing = Easing(self._desk, self._custodian, self._donors)
        self._relocation = Relocation(self._desk, self._donors)
        self._desk.agenda.add(expert_bytes)

    # -- what others may ask ------------------------------------------------------------

    @property
    def resident(self) -> list[ExpertId]:
        """Experts that may be computed here now."""
        return [expert for expert in self._desk.expert_bytes if self._desk.book[expert].resident]

    @property
    def custody(self) -> dict[ExpertId, int]:
        """Experts in this node's custody, with the slot."""
        return {expert: self._desk.book[expert].slot for expert in self._desk.book.standing()}

    @property
    def free_bytes(self) -> int:
        """Room neither taken nor reserved, for gossip's `Load`."""
        return max(0, self._desk.ledger.free_bytes)

    @property
    def taken_bytes(self) -> int:
        """Room taken by residents, by reservations, and by what is being dropped."""
        return self._desk.ledger.taken_bytes

    @property
    def migrations(self) -> int:
        """Migrations under way, given and taken."""
        return len(self._donors) + len(self._receivers)

    @property
    def under_way(self) -> list[Donation | Reception]:
        """The migrations themselves, for whoever shows them."""
        return [*self._donors.under_way(), *self._receivers.under_way()]

    @property
    def intakes(self) -> int:
        """Experts on their way in."""
        return len(self._intakes)

    @property
    def missing_bytes(self) -> int:
        """What the nodes in view lack to hold every expert once."""
        return self._desk.plan.missing_bytes

    @property
    def questions(self) -> dict[ExpertId, NodeId]:
        """Experts about which a question of this node is out, and whom it asks."""
        asks = ((expert, self._desk.book[expert].ask) for expert in self._desk.book.asking)
        return {expert: ask.peer for expert, ask in asks if ask is not None}

    @property
    def wants(self) -> Collection[ExpertId]:
        """Experts that placement wants resident here."""
        return self._desk.wants.keys()

    def record(self, expert: ExpertId) -> Custody:
        """All that this node keeps about an expert."""
        return self._desk.book[expert]

    def slots_wanted(self, expert: ExpertId) -> int:
        """How many custodians this node thinks an expert should have."""
        return self._desk.plan.slots(expert)

    def next_deadline(self) -> float:
        """When to `Tick` next."""
        desk = self._desk
        machines = (self._intakes, self._donors, self._receivers, self._farewell, self._easing, self._relocation)
        parts = (*machines, desk.agenda, desk.survey)
        return min(desk.book.ask_deadline_s(), *(part.next_s() for part in parts))

    # -- the machine ------------------------------------------------------------

    def handle(self, event: CustodyEvent, now: float) -> list[CustodyEffect]:
        """Take in one event.

        Args:
            event: What happened.
            now: Monotonic seconds, never less than before.

        Returns:
            What to do about it, in order.
        """
        desk = self._desk
        desk.now = max(now, desk.now)
        desk.out = []
        self._take_in(event)
        self._let_time_pass()
        self._settle()
        self._questions.flush()
        return [*desk.book.flush(), *desk.out]

    def _take_in(self, event: CustodyEvent) -> None:
        desk = self._desk
        match event:
            case Tick():
                pass
            case Received():
                self._received(event.sender, event.generation, event.message)
            case ViewChanged():
                storers = desk.survey.storers()
                changed = desk.survey.update(event.nodes)
                desk.agenda.add(changed)
                if desk.survey.storers() != storers:
                    desk.agenda.add(desk.expert_bytes)  # what could be had, or not, may be otherwise now
                self._replan()
                self._relocation.seen(changed)
            case Want():
                wants = dict.fromkeys(expert for expert in event.experts if expert in desk.book)
                desk.agenda.add(desk.wants.keys() ^ wants.keys())
                desk.wants = wants if not desk.leaving else {}
                self._custodian.open_wants()
            case Planned():
                self._planned, self._capacities = event.holders, {}
                self._replan()
                self._relocation.plans_changed(any_plans=bool(event.holders))
            case OnDisk():
                desk.agenda.add(event.experts ^ desk.on_disk)
                desk.on_disk = event.experts
            case UnitOpened():
                self._intakes.opened(event)
            case PieceArrived():
                self._intakes.arrived(event)
            case PieceFailed():
                self._intakes.peer_failed(event)
            case UnitLoaded():
                self._loaded(event.expert)
            case UnitFailed():
                self._intakes.unit_failed(event)
            case Dropped():
                self._custodian.dropped(event.expert)
                self._receivers.room_is_free()
            case Give():
                self._donors.give(event.expert, event.peer)
            case SetCapacity():
                desk.ledger.capacity_bytes = event.capacity_bytes
                self._replan()
            case SetRate():
                self._intakes.set_rate(event.bytes_per_s)
            case Leave():
                self._farewell.begin()
                self._receivers.refuse_all()
                self._replan()
                desk.agenda.add(desk.expert_bytes)

    def _received(self, peer: NodeId, generation: int, message: Message) -> None:
        match message:
            case ClaimQuestions():
                self._questions.answer(peer, message)
            case ClaimAnswers():
                for expert in self._questions.answered(peer, generation, message):
                    self._desk.agenda.add([expert])
                    self._donors.released(expert)
            case MigrationOffer():
                self._receivers.offered(peer, generation, message)
            case MigrationReserved() | MigrationRefused() | MigrationClaimed():
                self._donors.received(peer, generation, message)
            case MigrationAcked() | MigrationCancelled():
                self._receivers.received(peer, message)
            case _:
                raise AssertionError(f"not a message of custody: {type(message).__name__}")

    def _loaded(self, expert: ExpertId) -> None:
        desk = self._desk
        if expert not in self._intakes:
            desk.out.append(Drop(expert))  # not ours to have asked for; let the memory go
            return
        self._intakes.loaded(expert)
        desk.book.loaded(expert)
        self._receivers.loaded(expert)
        desk.agenda.add([expert])
        self._custodian.open_wants()

    def _let_time_pass(self) -> None:
        """Everything that is due by now."""
        desk = self._desk
        desk.agenda.add(desk.survey.expire(desk.now))
        desk.agenda.due(desk.now)
        self._questions.expire()
        self._intakes.tick()
        self._donors.tick()
        self._receivers.tick()

    def _settle(self) -> None:
        """Think until there is nothing left to think about."""
        while experts := self._take_agenda():
            for expert in experts:
                self._custodian.review(expert)
                self._donors.settle(expert)
        self._custodian.start_intakes()
        self._easing.advance()
        self._relocation.advance()
        self._farewell.advance()

    def _take_agenda(self) -> list[ExpertId]:
        for expert in self._intakes.take_failed():
            self._receivers.intake_failed(expert)
            self._desk.agenda.add([expert])
        return self._desk.agenda.take()

    def _replan(self) -> None:
        """Name guardians anew if the nodes that take part, their capacities, or their plans have changed."""
        desk = self._desk
        capacities = desk.survey.capacities()
        if not desk.leaving:
            capacities[desk.me] = desk.ledger.capacity_bytes
        if capacities != self._capacities:
            self._capacities = capacities
            if self._planned:
                desk.plan = planned_slots(desk.expert_bytes, capacities, desk.config.slots, self._planned)
            else:
                desk.plan = plan_slots(desk.expert_bytes, capacities, desk.config.slots)
            desk.agenda.add(desk.expert_bytes)
            self._custodian.open_wants()
