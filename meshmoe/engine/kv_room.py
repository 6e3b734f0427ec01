"""How much room keys and values get where nobody said it."""

from __future__ import annotations

import psutil
import torch

from meshmoe.engine.model import MoeModel
from meshmoe.engine.pool import ExpertPool

KV_CACHE_BYTES_MIN = 64 << 20
"""It is not less, however little memory is free."""


def default_kv_cache_bytes(model: MoeModel, active_max: int) -> int:
    """Room for keys and values: what all requests could need at most, but no more than a quarter of the free memory."""
    most = active_max * model.cache.bytes_for(model.context_length)
    return min(most, max(KV_CACHE_BYTES_MIN, psutil.virtual_memory().available // 4))


def card_kv_cache_bytes(model: MoeModel, active_max: int, pool: ExpertPool) -> int:
    """The same on a card: no more than half of what experts and trunk leave free there."""
    most = active_max * model.cache.bytes_for(model.context_length)
    free_bytes, _ = torch.cuda.mem_get_info(pool.device)
    left_bytes = free_bytes + pool.used_bytes - pool.capacity_bytes
    return min(most, max(KV_CACHE_BYTES_MIN, left_bytes // 2))
