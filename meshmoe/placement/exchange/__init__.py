"""Pairwise exchange: two nodes agree on a change of the plan. A state machine without I/O."""

from meshmoe.placement.exchange.config import ExchangeConfig
from meshmoe.placement.exchange.effects import ExchangeEffect, PlanChanged, SendTo
from meshmoe.placement.exchange.events import (
    ExchangeEvent,
    Heard,
    Links,
    OwnTrace,
    PeerPlan,
    PeersChanged,
    Repair,
    Wake,
)
from meshmoe.placement.exchange.machine import ExchangeMachine
from meshmoe.placement.exchange.messages import (
    EXCHANGE_MESSAGES,
    ExchangeAnswer,
    ExchangeProposal,
    ExchangeVerdict,
)

__all__ = [
    "EXCHANGE_MESSAGES",
    "ExchangeAnswer",
    "ExchangeConfig",
    "ExchangeEffect",
    "ExchangeEvent",
    "ExchangeMachine",
    "ExchangeProposal",
    "ExchangeVerdict",
    "Heard",
    "Links",
    "OwnTrace",
    "PeerPlan",
    "PeersChanged",
    "PlanChanged",
    "Repair",
    "SendTo",
    "Wake",
]
