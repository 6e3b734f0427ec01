"""Who is here: SWIM failure detection with Lifeguard's local health, as a machine without I/O.

`Membership` is driven with events and the time and answers with effects; `meshmoe.membership.config` has its numbers.
"""

from meshmoe.membership.config import LAN, PRESETS, WAN, MembershipConfig
from meshmoe.membership.effects import (
    Connect,
    Disconnect,
    LeaveFinished,
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLeft,
    MembershipEffect,
    MemberSuspect,
    NameConflict,
    Send,
)
from meshmoe.membership.events import Doubted, Learned, Leave, LocalHealth, MembershipEvent, Received, Tick
from meshmoe.membership.machine import Membership
from meshmoe.membership.member import Member, MemberState
from meshmoe.membership.messages import MEMBERSHIP_MESSAGES
from meshmoe.membership.rtt import RttEstimate

__all__ = [
    "LAN",
    "MEMBERSHIP_MESSAGES",
    "PRESETS",
    "WAN",
    "Connect",
    "Disconnect",
    "Doubted",
    "Learned",
    "Leave",
    "LeaveFinished",
    "LocalHealth",
    "Member",
    "MemberAlive",
    "MemberDead",
    "MemberForgotten",
    "MemberLeft",
    "MemberState",
    "MemberSuspect",
    "Membership",
    "MembershipConfig",
    "MembershipEffect",
    "MembershipEvent",
    "NameConflict",
    "Received",
    "RttEstimate",
    "Send",
    "Tick",
]
