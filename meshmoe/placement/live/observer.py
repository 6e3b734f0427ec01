"""What a node makes of its own demand, look by look: what gossip is told of it, and when the planner should think."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from meshmoe.gossip import Demand
from meshmoe.placement.exchange import OwnTrace
from meshmoe.placement.live.demand import RUN, DemandKeeper, DemandNews
from meshmoe.placement.live.drafts import DraftsSeen, as_passes, drafting
from meshmoe.placement.live.events import Learning
from meshmoe.placement.live.occasion import TOKENS_MIN, Occasion
from meshmoe.placement.trace import Floats

logger = logging.getLogger(__name__)


class Observed(NamedTuple):
    """What came of a look.

    Attributes:
        news: To be gossiped.
        events: For the planner, in order.
    """

    news: tuple[Demand, ...]
    events: tuple[Learning | OwnTrace, ...]


class Observer:
    """One node's. Whoever has it adds to its keeper, and looks about once a second."""

    def __init__(self, keeper: DemandKeeper, layers: int, experts: int) -> None:
        self.keeper = keeper
        self.demand: Floats = np.zeros((layers, experts))
        """Calls a second, as the planner knows them."""
        self._experts = experts
        self._news, self._occasion, self._learning = DemandNews(layers, experts), Occasion(), False

    def look(self, now: float, drafts: DraftsSeen | None = None, far_s: float = 0.0) -> Observed:
        """See what has changed.

        Args:
            now: Monotonic seconds.
            drafts: Measured of this node's latest passes.
            far_s: A round trip to a peer.
        """
        keeper, occasion = self.keeper, self._occasion
        if keeper.forget_old_use(now):
            logger.info("this node is used for something else now: what came before does not count any more")
            occasion.use_changed()
        trace = keeper.trace(now)
        demand = trace.demand(self._experts)
        news = self._news.of(demand) if keeper.tokens >= TOKENS_MIN else ()
        events: list[Learning | OwnTrace] = []
        # Where nobody has asked for so long that nothing is left of the demand, there is nothing to place for.
        how = drafting(drafts, far_s) if keeper.has_passes and demand.any() else None
        thinks = occasion.is_now(keeper.sample, demand, now, changing=keeper.changing, drafts_pay=how is not None)
        learning = keeper.changing or occasion.is_near(now)
        if learning != self._learning:
            self._learning = learning
            events.append(Learning(learning))
        if thinks:
            self.demand = demand
            away_s = 0.0
            if how is not None:
                passes, away_s = as_passes(keeper.passes(min(how.rows, RUN), now), trace.decode, how)
                trace = replace(trace, decode=passes)
                logger.info("placing for drafts: passes of %d rows tell %.1f tokens", how.rows, how.tokens)
            events.append(OwnTrace(trace, away_s))
        return Observed(news, tuple(events))
