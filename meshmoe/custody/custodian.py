"""The policy of custody: which claims to mint, to ask about, and to repair; which replicas to load and to drop.

`Custodian.review` thinks about one expert, and is called whenever something about it may have changed. What it may do
is limited by the custody rule; what it does do is meant to bring about, from any state and without agreement between
views:

- **Every slot filled.** A slot without a claim in our view, for longer than a grace, is vacant. Those who could fill
  it stand in one order (`_candidates`): whoever has the expert resident already, the guardians, everybody else, each
  kind in the order of succession. The first ones go ahead at once; each later one waits a while longer, so that not
  everybody loads the same expert, yet a failed successor does not leave the slot vacant.
- **One claim a slot.** Where several stand, all but the greatest ask it and are released. Views may lag: whoever asks
  in error is told so.
- **No more slots than capacity allows.** When only one is wanted, the custodian of the higher slot asks the one of the
  lower; a leaving node asks whoever stands.
- **Nothing unwanted.** Residents without a claim that placement does not want are dropped, but not while a slot is
  vacant in our view; and they make room for what custody needs.

Invariant S3: nothing is loaded without a reservation in the ledger. A vacancy that finds no room waits for it.
"""

from __future__ import annotations

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.claims import Claim
from meshmoe.custody.desk import Desk
from meshmoe.custody.effects import Adopted, Drop, Found, Lost
from meshmoe.custody.intake import Intakes
from meshmoe.custody.questions import Questions
from meshmoe.custody.slots import succession


class Custodian:
    """One for each machine."""

    def __init__(self, desk: Desk, intakes: Intakes, questions: Questions) -> None:
        self._desk = desk
        self._intakes = intakes
        self._questions = questions
        self._vacant_since_s: dict[ExpertId, float] = {}
        self._vacant_bytes = 0
        self._due: dict[ExpertId, None] = {}
        """Vacancies that we are to fill and have not begun to, for want of room or of an intake."""
        self._wants_open = True
        """Whether there may be something wanted that can be loaded now."""
        self._lost: set[ExpertId] = set()
        self._dropping: set[ExpertId] = set()
        self._spare_until_s = float("-inf")
        self.cramped: ExpertId | None = None
        """A vacancy of ours for which there is no room, while nothing is being dropped or could be."""

    def review(self, expert: ExpertId) -> None:
        """Think about one expert."""
        desk = self._desk
        record = desk.book[expert]
        self._due.pop(expert, None)
        self._wants_open |= expert in desk.wants
        others = desk.survey.claims(expert)
        for slot, claim in others:
            desk.book.see(expert, slot, claim)
        if record.claim is not None:
            self._fill(expert)
            self._question(expert, record.slot, record.claim, others)
            return
        missing = desk.plan.slots(expert) - len({slot for slot, _ in others})
        if missing > 0:
            self._repair(expert, others, missing)
            return
        self._fill(expert)
        if expert in desk.wants or expert in desk.receiving:
            return
        if expert in self._intakes:
            self._intakes.cancel(expert)
        elif record.resident and not desk.leaving:
            self._drop(expert)

    def dropped(self, expert: ExpertId) -> None:
        """The memory of a dropped expert is free."""
        self._dropping.discard(expert)
        self._wants_open = True
        self._desk.ledger.free(expert)
        self._desk.agenda.add([expert])

    def start_intakes(self) -> None:
        """Begin what there is room for: vacancies first, in the order in which they came up, then what is wanted."""
        desk = self._desk
        too_large_bytes = 1 << 62
        self.cramped = None
        for expert in list(self._due):
            if len(self._intakes) >= desk.config.intakes_max:
                return
            if desk.expert_bytes[expert] >= too_large_bytes:
                continue
            ready_s = self._intakes.resting_until_s(expert)
            if ready_s > desk.now:
                desk.agenda.at(expert, ready_s)
            elif not self.make_room(expert) or not self._intakes.start(expert):
                too_large_bytes = desk.expert_bytes[expert]
                if not self._dropping:
                    self.cramped = expert  # in the end the smallest of them
                continue
            del self._due[expert]
        if self._wants_open and not self._due and not desk.leaving:
            self._wants_open = self._start_wanted()

    def _start_wanted(self) -> bool:
        """Begin to load what placement wants; returns whether there may be more to begin when an intake ends."""
        desk = self._desk
        storers = desk.survey.storers()
        for expert in desk.wants:
            if len(self._intakes) >= desk.config.intakes_max:
                return True
            if desk.book[expert].resident or expert in self._intakes:
                continue
            ready_s = self._intakes.resting_until_s(expert)
            if ready_s > desk.now:
                desk.agenda.at(expert, ready_s)
            elif (expert in desk.on_disk or desk.survey.holders(expert) or storers) and not self._intakes.start(expert):
                return False  # no room: an expert that goes, or a change of mind, opens it again
        return False

    def open_wants(self) -> None:
        """Something changed that may let more of what is wanted be loaded."""
        self._wants_open = True

    def make_room(self, expert: ExpertId) -> bool:
        """Whether there is room for an expert; if not, begin to drop replicas that nobody relies on."""
        desk = self._desk
        if expert in desk.ledger:
            return expert not in self._dropping
        short_bytes = desk.expert_bytes[expert] - desk.ledger.free_bytes
        if short_bytes <= 0:
            return True
        short_bytes -= sum(desk.expert_bytes[dropping] for dropping in self._dropping)
        for replica in self._replicas():
            if short_bytes <= 0:
                break
            self._drop(replica)
            short_bytes -= desk.expert_bytes[replica]
        return False

    def spare_room_until(self, until_s: float) -> None:
        """Keep nothing for a second slot until then: room is being made for an expert without any custodian, say."""
        self._spare_until_s = until_s

    @property
    def is_making_room(self) -> bool:
        """Whether memory will be free shortly."""
        return bool(self._dropping)

    # -- with a claim ------------------------------------------------------------

    def _question(self, expert: ExpertId, slot: int, claim: Claim, others: list[tuple[int, Claim]]) -> None:
        """Our claim stands: ask those who could relieve us of it."""
        desk = self._desk
        staying = [(where, other) for where, other in others if not desk.survey.is_leaving(other.node)]
        rivals = [other for where, other in staying if where == slot and other > claim]
        if rivals:
            self._questions.ask(expert, slot, max(rivals))
        elif desk.plan.slots(expert) == 1 and expert not in desk.receiving:
            # Not while a donor waits for our claim: it may think that two are wanted, and would never be rid of its.
            elsewhere = [(where, other) for where, other in staying if where < slot or (desk.leaving and where != slot)]
            if elsewhere:
                self._questions.ask(expert, *min(elsewhere))

    # -- without a claim ------------------------------------------------------------

    def _repair(self, expert: ExpertId, others: list[tuple[int, Claim]], missing: int) -> None:
        """Slots are vacant in our view: fill one if it is our turn."""
        desk = self._desk
        since_s = self._vacant_since_s.get(expert)
        if since_s is None:
            since_s = self._vacant_since_s[expert] = desk.now
            self._vacant_bytes += desk.expert_bytes[expert]
        if desk.leaving or not self._can_be_had(expert, since_s):
            return
        if others and desk.now < self._spare_until_s and expert != self.cramped:
            desk.agenda.at(expert, self._spare_until_s)
            if desk.book[expert].resident and expert not in desk.receiving:
                self._drop(expert)
            return
        candidates = self._candidates(expert, {claim.node for _, claim in others})
        place = candidates.index(desk.me)
        due_s = since_s + desk.config.grace_s + self._wait_s(expert, place - missing + 1)
        if desk.now < due_s:
            desk.agenda.at(expert, due_s)
            if self._was_ours(expert) and not desk.book[expert].resident and expert not in self._intakes:
                self._due[expert] = None  # after a restart weights are read at once, and promised when views are known
            return
        if desk.book[expert].resident:
            filled = {slot for slot, _ in others}
            vacant = [slot for slot in range(desk.config.slots) if slot not in filled]
            self.mint(expert, vacant[place if place < missing else 0])
        elif expert not in self._intakes:
            self._due[expert] = None

    def mint(self, expert: ExpertId, slot: int) -> None:
        """Become custodian."""
        self._desk.book.mint(expert, slot)
        self._desk.out.append(Adopted(expert, slot))
        self._fill(expert)

    def _candidates(self, expert: ExpertId, claimants: set[NodeId]) -> list[NodeId]:
        """Who could fill a slot, this node included, in the order in which they should."""
        desk = self._desk
        serving = frozenset(desk.survey.capacities()) | {desk.me}
        holders = desk.survey.holders(expert) & serving
        if desk.book[expert].resident:
            holders |= {desk.me}
        guardians = desk.plan.guardians.get(expert, ())
        order = [*succession(expert, holders), *guardians, *succession(expert, serving)]
        return [node for node in dict.fromkeys(order) if node not in claimants]

    def _wait_s(self, expert: ExpertId, places: int) -> float:
        """How long to leave a vacancy to the ``places`` candidates before us.

        They may have as much else to repair as we see vacant, shared among all.
        """
        desk = self._desk
        if places <= 0 or self._was_ours(expert):
            return 0.0
        shared_bytes = self._vacant_bytes / (1 + len(desk.survey.nodes))
        return (
            places * desk.config.stagger_of_s(desk.expert_bytes[expert])
            + shared_bytes / desk.config.stagger_bytes_per_s
        )

    def _was_ours(self, expert: ExpertId) -> bool:
        """Whether an earlier life of this node had the expert in custody, and the weights are on this disk."""
        return expert in self._desk.book.restored and expert in self._desk.on_disk

    def _can_be_had(self, expert: ExpertId, since_s: float) -> bool:
        """Whether there is any source of the weights; says so when there has been none for long."""
        desk = self._desk
        here = desk.book[expert].resident or expert in desk.on_disk or expert in self._intakes
        if here or desk.survey.holders(expert) or desk.survey.storers():
            self._found(expert)
            return True
        lost_s = since_s + desk.config.lost_after_s
        if desk.now < lost_s:
            desk.agenda.at(expert, lost_s)
        elif expert not in self._lost:
            self._lost.add(expert)
            desk.out.append(Lost(expert))
        return False

    def _fill(self, expert: ExpertId) -> None:
        """No slot is vacant (any more), or we have done our part."""
        if self._vacant_since_s.pop(expert, None) is not None:
            self._vacant_bytes -= self._desk.expert_bytes[expert]
        self._found(expert)

    def _found(self, expert: ExpertId) -> None:
        if expert in self._lost:
            self._lost.discard(expert)
            self._desk.out.append(Found(expert))

    def _replicas(self) -> list[ExpertId]:
        """Residents that may go, least wanted first: no claim of ours, no slot vacant, no migration."""
        desk = self._desk
        importance = {expert: -place for place, expert in enumerate(desk.wants)}
        replicas = [
            expert
            for expert in desk.expert_bytes
            if desk.book[expert].resident
            and desk.book[expert].claim is None
            and expert not in self._vacant_since_s
            and expert not in desk.receiving
        ]
        return sorted(replicas, key=lambda expert: (importance.get(expert, -len(importance)), expert))

    def _drop(self, expert: ExpertId) -> None:
        self._desk.book.dropped(expert)
        self._dropping.add(expert)
        self._desk.out.append(Drop(expert))
