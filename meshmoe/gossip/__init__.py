"""Who knows what: single-writer versioned entries that spread through the mesh, as a machine without I/O.

`Gossip` is driven with events and the time; `Gossip.view` is what this node believes of all nodes.
"""

from meshmoe.gossip.config import DEFAULT, GossipConfig
from meshmoe.gossip.events import GossipEffect, GossipEvent, LaterLife, Publish, Withdraw
from meshmoe.gossip.holdings_news import HoldingsNews
from meshmoe.gossip.machine import Gossip
from meshmoe.gossip.messages import GOSSIP_MESSAGES
from meshmoe.gossip.values import (
    Agreement,
    Claims,
    Demand,
    Holdings,
    Link,
    Links,
    Load,
    NodeInfo,
    Planned,
    PlanStamp,
    Value,
    key_of,
)
from meshmoe.gossip.view import Claim, NodeView, View, holder_digest

__all__ = [
    "DEFAULT",
    "GOSSIP_MESSAGES",
    "Agreement",
    "Claim",
    "Claims",
    "Demand",
    "Gossip",
    "GossipConfig",
    "GossipEffect",
    "GossipEvent",
    "Holdings",
    "HoldingsNews",
    "LaterLife",
    "Link",
    "Links",
    "Load",
    "NodeInfo",
    "NodeView",
    "PlanStamp",
    "Planned",
    "Publish",
    "Value",
    "View",
    "Withdraw",
    "holder_digest",
    "key_of",
]
