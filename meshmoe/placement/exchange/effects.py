"""What the exchange machine asks of the runtime, in the order in which it is to be done."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message


class SendTo(msgspec.Struct, frozen=True):
    """Post a message on the control lane; it may be lost."""

    peer: NodeId
    message: Message


@dataclass(frozen=True)
class PlanChanged:
    """This node's plan has changed: publish it, and carry it out when the machine is quiet.

    Attributes:
        version: Of the plan; greater than before.
        partner: With whom it was agreed; None for a choice of copies of its own.
        adds, drops: Experts to hold from now on, and not any more.
        gained, given: Ownership that came and went.
        gain_ms_per_s: What both ends together save, milliseconds a second.
    """

    version: int
    partner: NodeId | None
    adds: tuple[ExpertId, ...]
    drops: tuple[ExpertId, ...]
    gained: tuple[ExpertId, ...]
    given: tuple[ExpertId, ...]
    gain_ms_per_s: float


ExchangeEffect = SendTo | PlanChanged
