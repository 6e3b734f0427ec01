"""What a node tells of itself by gossip."""

from __future__ import annotations

from typing import Literal

from meshmoe import __version__
from meshmoe.core.endpoints import Endpoints
from meshmoe.engine.pool import ExpertPool
from meshmoe.gossip import Load, NodeInfo
from meshmoe.node.expert_times import ExpertTimes
from meshmoe.node.model_source import ModelSource

State = Literal["starting", "serving", "leaving"]


def node_info(
    state: State, endpoints: Endpoints, model: ModelSource | None, pool: ExpertPool | None, times: ExpertTimes | None
) -> NodeInfo:
    """What seldom changes; 0 and None for what is not known yet."""
    return NodeInfo(
        state=state,
        endpoints=endpoints,
        software=__version__,
        model_digest=model.manifest.model_digest if model else None,
        capacity_bytes=pool.capacity_bytes if pool is not None else 0,
        stores_model=model.whole if model else False,
        expert_call_us=round(1e6 * times.call_s) if times is not None else 0,
        expert_rows_per_s=round(1 / max(1e-9, times.row_s)) if times is not None else 0,
    )


def node_load(pool: ExpertPool, queue_calls: int, times: ExpertTimes | None) -> Load:
    """What changes all the time: memory, and peers' calls that wait, with the time that they will take."""
    queue_us = round(queue_calls * 1e6 * times.call_s) if times is not None else 0
    return Load(pool.free_bytes, pool.used_bytes, queue_calls=queue_calls, queue_us=queue_us)
