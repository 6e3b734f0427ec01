"""What a box can offer, measured by the node itself."""

from __future__ import annotations

import os

import psutil

MEMORY_SHARE = 0.8
"""Of the memory that is available at start: the rest is for KV caches, activations and the box's other work."""


def auto_capacity_bytes(trunk_bytes: int) -> int:
    """Memory that experts may take on this box, once the trunk is in it."""
    available: int = psutil.virtual_memory().available
    return max(0, int(available * MEMORY_SHARE) - trunk_bytes)


def card_capacity_bytes() -> int:
    """Memory that experts may take on the card, once the trunk is on it."""
    import torch  # takes seconds, which whoever only asks for help should not wait for

    free_bytes, _ = torch.cuda.mem_get_info()
    return int(free_bytes * MEMORY_SHARE)


def auto_threads() -> int:
    """Compute threads: one a physical core, but one core is left to everything else where there are several."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(cores, len(os.sched_getaffinity(0))) - 1)


def rss_bytes() -> int:
    """Resident memory of this process."""
    rss: int = psutil.Process().memory_info().rss
    return rss
