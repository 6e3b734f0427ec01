"""What the parts of the gossip machine share: the store, the budget, the outgoing messages, the present time."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from meshmoe.core.ids import NodeId
from meshmoe.gossip.budget import Budget
from meshmoe.gossip.config import GossipConfig
from meshmoe.gossip.events import GossipEffect
from meshmoe.gossip.messages import GossipDelta, GossipDigest, GossipPush, message_bytes
from meshmoe.gossip.store import Store
from meshmoe.membership import Send

PART_BYTES_MIN = 1024
"""Below this much budget a message is put off rather than cut to crumbs."""


@dataclass(slots=True)
class Desk:
    """One for each machine."""

    config: GossipConfig
    rng: Random
    store: Store
    budget: Budget
    now: float
    out: list[GossipEffect] = field(default_factory=list)

    def send(self, peer: NodeId, message: GossipPush | GossipDigest | GossipDelta) -> None:
        """Send, and count it against the budget."""
        self.budget.spend(message_bytes(message), self.now)
        self.out.append(Send(peer, message))

    def available_bytes(self) -> int:
        """What a message may carry now; 0 when too little is left for one."""
        available = min(self.config.message_bytes, int(self.budget.available(self.now)))
        return available if available >= PART_BYTES_MIN else 0
