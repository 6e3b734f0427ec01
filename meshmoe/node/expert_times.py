"""How fast this box computes experts, measured on those that it holds: what its peers, and placement, reckon with.

The shortest of many calls counts, from several moments: a box that starts is busy, and whatever else it does makes a
call longer, never shorter. Medians of one moment told 900 us for an expert of 12 us; placement then found it dearer to
hold experts than to ask for them over Wi-Fi, and left places empty.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import NamedTuple

import torch
import trio

from meshmoe.core.errors import MeshmoeError
from meshmoe.engine.engine import Engine

logger = logging.getLogger(__name__)

TRIES = 7
MOMENTS = 3
PAUSE_S = 0.3
"""Between the moments."""

AGAIN_S = (0.0, 4.0, 8.0)
"""Pauses before each whole measurement: the first seconds of a node are its busiest."""

EXPERTS_MAX = 8
ROWS = 16


class ExpertTimes(NamedTuple):
    """From the shortest calls.

    Attributes:
        call_s: A whole call of one expert for one row, with its way into the compute thread and back.
        expert_s: Each further expert in a call.
        row_s: Each further row of an expert.
    """

    call_s: float
    expert_s: float
    row_s: float

    def least(self, other: ExpertTimes) -> ExpertTimes:
        """The shorter of each: of two measurements, that at which the box did less besides."""
        return ExpertTimes(*map(min, self, other))


async def measurements(engine: Engine) -> AsyncIterator[ExpertTimes]:
    """The times as they become known better, the last ones after a quarter of a minute."""
    best: ExpertTimes | None = None
    for pause_s in AGAIN_S:
        await trio.sleep(pause_s)
        if not engine.pool.experts():
            continue
        try:
            times = await measure_experts(engine)
        except MeshmoeError as error:  # it was dropped meanwhile, or the box is busy: peers reckon without
            logger.info("the time of an expert was not measured: %s", error)
            continue
        best = times if best is None else times.least(best)
        yield best


async def measure_experts(engine: Engine) -> ExpertTimes:
    """Measure on the layer of which most experts are resident; there must be one at least. Takes about a second."""
    resident = engine.pool.experts()
    ((layer, _),) = Counter(expert.layer for expert in resident).most_common(1)
    some = [expert.index for expert in resident if expert.layer == layer][:EXPERTS_MAX]
    hidden = torch.zeros(ROWS, int(engine.model.config.hidden_size), dtype=engine.model.dtype)
    kinds = ((some[:1], 1), (some[:1], ROWS), (some, 1))

    async def took_s(experts: list[int], rows: int) -> float:
        asked = [(index, list(range(rows))) for index in experts]
        started = time.perf_counter()
        await engine.compute_experts(layer, asked, hidden, decode=False, deadline=math.inf)
        return time.perf_counter() - started

    await took_s(some, ROWS)  # the first calls load code and weights into caches
    best_s = [math.inf] * len(kinds)
    for moment in range(MOMENTS):
        if moment:
            await trio.sleep(PAUSE_S)
        for _ in range(TRIES):
            best_s = [min(known_s, await took_s(*kind)) for known_s, kind in zip(best_s, kinds, strict=True)]
    one, rows, several = best_s
    further = (several - one) / (len(some) - 1) if len(some) > 1 else one
    return ExpertTimes(one, min(one, max(0.0, further)), max(0.0, (rows - one) / (ROWS - 1)))
