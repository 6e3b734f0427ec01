"""Every number of placement in a running mesh, with what it trades."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshmoe.placement.exchange import ExchangeConfig


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """Knobs of `meshmoe.placement.live.Planner`; the same on all nodes.

    Attributes:
        exchange: Of the exchange machine. An exchange must gain half a percent of both ends' cost. With 2 % plans
            stayed 2 to 3 % dearer on recorded routing, and rested no sooner: what keeps weights from moving for noise
            is that a node seldom thinks again (`meshmoe.placement.live.occasion`).
        grace_s: An expert must have been without an owner, or with several, for so long in this node's view before
            owners are put right: longer than gossip and the end of an exchange take.
        settle_s: Plans must have been quiet for so long before weights move: plans that change twice move once.
        patience_s: A mesh that never becomes quiet moves weights after this time all the same.
    """

    exchange: ExchangeConfig = field(default_factory=lambda: ExchangeConfig(pause_s=0.5, gain_min=0.005))
    grace_s: float = 3.0
    settle_s: float = 2.0
    patience_s: float = 60.0


DEFAULT = LiveConfig()
