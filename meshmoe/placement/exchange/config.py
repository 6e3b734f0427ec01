"""Every number of the exchange, with what it trades."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExchangeConfig:
    """Knobs of `meshmoe.placement.exchange.ExchangeMachine`; the same on all nodes.

    Attributes:
        pause_s: Between a node's proposals; drawn evenly from half of this to one and a half, so that nodes do not
            propose in step. Shorter settles sooner and costs more computing: a proposal prices some hundred sets.
        retry_s: A message without an answer is repeated after this time.
        tries: So often; then a proposal is given up. An answer is repeated until its proposer is gone.
        gain_min: Hysteresis: an exchange must save at least this share of what both ends' experts cost now.
        horizon_s: Over which a moved byte must repay the seconds that it takes on the link. Demand that lasts less
            long than this should not move weights.
        anyone: Share of proposals that go to any node instead of the most promising linked one: exchanges between
            neighbours alone can settle where a swap across the mesh would still gain.
        asked_max: So many peers a node asks in vain, the most promising first, before it is quiet until its own plan or
            demand changes. In a mesh with more peers it leaves it to whoever changes to ask, who asks as many: else
            every change anywhere is asked about by everybody.
    """

    pause_s: float = 2.0
    retry_s: float = 1.0
    tries: int = 4
    gain_min: float = 1e-3
    horizon_s: float = 3600.0
    anyone: float = 0.125
    asked_max: int = 16
