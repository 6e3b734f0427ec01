"""What a node gets when it knows its model: a pool, custody, placement, and the engine's connections to the mesh."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from random import Random

import numpy as np
import torch

from meshmoe.core.endpoints import Lane
from meshmoe.core.errors import CapacityError
from meshmoe.core.ids import NodeId
from meshmoe.core.units import format_size
from meshmoe.custody import DEFAULT as CUSTODY
from meshmoe.custody import CustodyMachine, Life
from meshmoe.engine.answering import answer_call
from meshmoe.engine.engine import Engine
from meshmoe.engine.model import MoeModel
from meshmoe.engine.pool import ExpertPool, PoolChange
from meshmoe.engine.remote import LayerCall
from meshmoe.node.custody_driver import now_s
from meshmoe.node.custody_file import CustodyFile
from meshmoe.node.express import Express
from meshmoe.node.measure import auto_capacity_bytes, card_capacity_bytes
from meshmoe.node.model_source import ModelSource
from meshmoe.node.parts import Parts
from meshmoe.node.settings import NodeSettings
from meshmoe.node.unit_intake import UnitIntake
from meshmoe.node.vigil import Vigil
from meshmoe.node.wants import Wants
from meshmoe.placement.live import DEFAULT as LIVE
from meshmoe.placement.live import Planner
from meshmoe.placement.live.demand import DemandKeeper
from meshmoe.placement.world import ModelShape, NodeSpec

EXPERT_S = 50e-6
ROW_S = 5e-6
"""To compute an expert for one row, and for each further row: until it is measured."""


def make_pool(settings: NodeSettings, source: ModelSource, model: MoeModel, device: torch.device | None) -> ExpertPool:
    """Room for experts, as much as the settings say or the box can spare.

    Raises:
        CapacityError: It is too little for one expert.
    """
    sizes = [model.expert_bytes[expert.layer] for expert in model.experts]
    if settings.capacity is not None:
        capacity_bytes = min(settings.capacity.resolve(sum(sizes)), sum(sizes))
    else:
        auto = card_capacity_bytes() if device else auto_capacity_bytes(source.source.trunk_bytes)
        capacity_bytes = min(auto, sum(sizes))
    if capacity_bytes < min(sizes):
        raise CapacityError(
            f"capacity {format_size(capacity_bytes)} is too small for one expert of this model "
            f"({format_size(min(sizes))}): give more with --capacity"
        )
    return ExpertPool(capacity_bytes, device)


def begin_custody(
    name: NodeId, life: Life, parts: Parts, file: CustodyFile, source: ModelSource, model: MoeModel, pool: ExpertPool
) -> None:
    """Give custody its machine: what this node has promised before, and what the model has."""
    digest = source.manifest.model_digest
    parts.gossip.view.limit([layer.n_experts for layer in model.layers])
    expert_bytes = {expert: model.expert_bytes[expert.layer] for expert in model.experts}
    machine = CustodyMachine(
        CUSTODY,
        life,
        digest,
        expert_bytes,
        pool.capacity_bytes,
        file.state_for(digest, name),
        now_s(),
    )
    custody = parts.custody
    wants = Wants(name, expert_bytes, pool.capacity_bytes)
    intake = UnitIntake(source.source, pool, parts.unit_client, expert_bytes, model.dtype, custody.feed)
    custody.begin(machine, wants, intake, pool, file)


def begin_placement(
    settings: NodeSettings, generation: int, rng: Random, parts: Parts, model: MoeModel, pool: ExpertPool
) -> None:
    """Give placement its planner, asleep."""
    sizes = np.zeros((len(model.layers), max(layer.n_experts for layer in model.layers)), np.int64)
    for expert in model.experts:
        sizes[expert.layer, expert.index] = model.expert_bytes[expert.layer]
    shape = ModelShape(sizes, int(model.config.hidden_size) * model.dtype.itemsize)
    # Numbers of exchanges rise over all lives of a node: 65,536 for each millisecond that it has lived.
    first_id, now = generation << 16, time.monotonic()
    spec = NodeSpec(pool.capacity_bytes, expert_s=EXPERT_S, row_s=ROW_S)
    planner = Planner(LIVE, settings.node, shape, spec, first_id, Random(rng.random()), now)
    half_life_s = settings.demand_half_life_s
    keeper = DemandKeeper(shape.layers, shape.experts, half_life_s, Random(rng.random()), now)
    parts.placement.begin(planner, keeper, sizes, ROW_S)


async def open_express(
    parts: Parts, engine: Engine, spin: bool, spawn: Callable[[Callable[[], Awaitable[None]]], None]
) -> None:
    """Let the compute thread serve the data lane itself, where the transport can do that."""
    transport = parts.messenger.transport
    await parts.messenger.stop_receiving(Lane.DATA)
    lane = transport.open_direct(Lane.DATA)
    if lane is None:
        spawn(lambda: parts.messenger.receive_on(Lane.DATA))
        return
    express = parts.express = Express(
        lane, engine, parts.mesh, parts.expert_client, parts.expert_server, parts.messenger, Vigil(spin)
    )
    engine.peer_calls_besides = express.serving
    engine.compute.attach(express)


def connect_engine(parts: Parts, engine: Engine, pool: ExpertPool) -> None:
    """Let calls between nodes and the engine find each other, and the mesh hear what is resident."""

    async def compute_here(call: LayerCall, rows: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        return await answer_call(engine, call._replace(rows=rows), deadline=math.inf)

    def holdings_changed(change: PoolChange) -> None:
        parts.gossip.publish_holding(change.expert, change.resident)
        parts.mesh.announce_change()

    parts.expert_client.resident = pool.__contains__
    parts.expert_client.compute_here = compute_here
    parts.expert_server.engine = engine
    parts.placement.take_routed = engine.counts.log.take
    pool.subscribe(holdings_changed)
