"""What the parts of the custody machine share: book, ledger, survey and plan of one node, effects of one event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.custody.agenda import Agenda
from meshmoe.custody.book import Book
from meshmoe.custody.config import CustodyConfig
from meshmoe.custody.effects import CustodyEffect
from meshmoe.custody.ledger import Ledger
from meshmoe.custody.slots import SlotPlan
from meshmoe.custody.survey import Survey
from meshmoe.membership import Send


@dataclass(slots=True)
class Desk:
    """One for each machine.

    Attributes:
        config: Numbers.
        expert_bytes: Size of every expert of the model.
        book: Our records.
        ledger: Our memory.
        survey: The others.
        agenda: Experts to think about, now or later.
        plan: Guardians and wanted slots, from the present view.
        on_disk: Experts whose whole unit is on our disk.
        wants: Experts that placement wants here, most wanted first.
        receiving: Experts that migrations bring here.
        leaving: Whether this node is handing everything over.
        now: Time of the event.
        out: Its effects so far.
    """

    config: CustodyConfig
    expert_bytes: Mapping[ExpertId, int]
    book: Book
    ledger: Ledger
    survey: Survey
    agenda: Agenda
    plan: SlotPlan
    now: float
    on_disk: frozenset[ExpertId] = frozenset()
    wants: dict[ExpertId, None] = field(default_factory=dict)
    receiving: set[ExpertId] = field(default_factory=set)
    leaving: bool = False
    out: list[CustodyEffect] = field(default_factory=list)

    @property
    def me(self) -> NodeId:
        """This node."""
        return self.book.life.node

    def send(self, peer: NodeId, message: Message) -> None:
        """Send on the control lane; it may be lost."""
        self.out.append(Send(peer, message))
