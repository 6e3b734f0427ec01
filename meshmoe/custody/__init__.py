"""No expert is ever lost: claims, repair and migration of experts between nodes, as machines without I/O.

`CustodyMachine` is driven with events and the time and answers with effects; `meshmoe.custody.rule` says
when a promise to keep an expert may be given up, and why that is safe.
"""

from meshmoe.custody.claims import SLOTS_MAX, Claim, Life, claim_of, stamp_of
from meshmoe.custody.config import DEFAULT, CustodyConfig
from meshmoe.custody.effects import (
    AbandonUnit,
    Adopted,
    CustodyEffect,
    Drop,
    Found,
    LeaveFinished,
    LeaveProgress,
    LoadUnit,
    Lost,
    MigrationEnded,
    OpenUnit,
    Persist,
    Released,
    RequestPiece,
    StorePiece,
    Tell,
)
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
from meshmoe.custody.machine import CustodyMachine
from meshmoe.custody.messages import CUSTODY_MESSAGES
from meshmoe.custody.migration import Donation, Reception
from meshmoe.custody.slots import SlotPlan, plan_slots, planned_slots, succession
from meshmoe.custody.state import CustodyState, check_state, decode_state, next_generation
from meshmoe.custody.throttle import TokenBucket, next_rate

__all__ = [
    "CUSTODY_MESSAGES",
    "DEFAULT",
    "SLOTS_MAX",
    "AbandonUnit",
    "Adopted",
    "Claim",
    "CustodyConfig",
    "CustodyEffect",
    "CustodyEvent",
    "CustodyMachine",
    "CustodyState",
    "Donation",
    "Drop",
    "Dropped",
    "Found",
    "Give",
    "Leave",
    "LeaveFinished",
    "LeaveProgress",
    "Life",
    "LoadUnit",
    "Lost",
    "MigrationEnded",
    "OnDisk",
    "OpenUnit",
    "Persist",
    "PieceArrived",
    "PieceFailed",
    "Planned",
    "Reception",
    "Released",
    "RequestPiece",
    "SetCapacity",
    "SetRate",
    "SlotPlan",
    "StorePiece",
    "Tell",
    "TokenBucket",
    "UnitFailed",
    "UnitLoaded",
    "UnitOpened",
    "ViewChanged",
    "Want",
    "check_state",
    "claim_of",
    "decode_state",
    "next_generation",
    "next_rate",
    "plan_slots",
    "planned_slots",
    "stamp_of",
    "succession",
]
