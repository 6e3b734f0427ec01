"""How fast this box computes experts, measured on those that it holds: what its peers, and placement, reckon with."""

from __future__ import annotations

import math
import time
from collections import Counter
from statistics import median
from typing import NamedTuple

import torch

from meshmoe.engine.engine import Engine

TRIES = 7
EXPERTS_MAX = 8
ROWS = 16


class ExpertTimes(NamedTuple):
    """Medians of some calls.

    Attributes:
        call_s: A whole call of one expert for one row, with its way into the compute thread and back.
        expert_s: Each further expert in a call.
        row_s: Each further row of an expert.
    """

    call_s: float
    expert_s: float
    row_s: float


async def measure_experts(engine: Engine) -> ExpertTimes:
    """Measure on the layer of which most experts are resident; there must be one at least. Takes some milliseconds."""
    resident = engine.pool.experts()
    ((layer, _),) = Counter(expert.layer for expert in resident).most_common(1)
    some = [expert.index for expert in resident if expert.layer == layer][:EXPERTS_MAX]
    hidden = torch.zeros(ROWS, int(engine.model.config.hidden_size), dtype=engine.model.dtype)

    async def took_s(experts: list[int], rows: int) -> float:
        asked = [(index, list(range(rows))) for index in experts]
        times = []
        for _ in range(TRIES):
            started = time.perf_counter()
            await engine.compute_experts(layer, asked, hidden, decode=False, deadline=math.inf)
            times.append(time.perf_counter() - started)
        return median(times)

    await took_s(some, ROWS)  # the first calls load code and weights into caches
    one, rows = await took_s(some[:1], 1), await took_s(some[:1], ROWS)
    several = await took_s(some, 1)
    further = (several - one) / (len(some) - 1) if len(some) > 1 else one
    return ExpertTimes(one, max(0.0, further), max(0.0, (rows - one) / (ROWS - 1)))
