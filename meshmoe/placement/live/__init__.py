"""Placement in a running mesh: plans that begin, are exchanged, heal, and come to rest. A machine without I/O."""

from meshmoe.placement.live.config import DEFAULT, LiveConfig
from meshmoe.placement.live.events import Learning, PlannerEffect, PlannerEvent, Seen, Settled, Tell
from meshmoe.placement.live.planner import Planner

__all__ = [
    "DEFAULT",
    "Learning",
    "LiveConfig",
    "Planner",
    "PlannerEffect",
    "PlannerEvent",
    "Seen",
    "Settled",
    "Tell",
]
