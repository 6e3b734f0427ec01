"""Keeps resident what the guardian rule assigns to this node: loads from disk or peers, and lets go of the rest.

An expert is let go only while another present node tells that it holds it; so the mesh never has fewer holders of an
expert for our dropping it. To let two full nodes trade places, each plans one expert less than it has room for: the
spare place receives what another node then can drop. (When all spare places have drifted elsewhere and nothing moves,
an unwanted expert that is on this node's own disk is dropped all the same; it can be loaded again within milliseconds.)
"""

from __future__ import annotations

import logging

import trio

from meshmoe.core.errors import CapacityError, CheckpointError, PeerError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.engine.model import MoeModel
from meshmoe.engine.pool import ExpertPool
from meshmoe.model.loading import load_expert
from meshmoe.model.source import WeightSource
from meshmoe.model.store import PartialStore
from meshmoe.model.unit_names import UnitName
from meshmoe.node.mesh import Mesh
from meshmoe.node.unit_client import UnitClient
from meshmoe.placement.guardian import GuardianPlan, guardian_plan

logger = logging.getLogger(__name__)

FETCHES_MAX = 4
"""Experts on their way at once: hides the round trips of small experts on slow links."""

STUCK_S = 5.0
"""Without any progress for so long, an unwanted expert is dropped though nobody else holds it."""

RETRY_S = 1.0


class Keeper:
    """See the module's text."""

    def __init__(
        self,
        mesh: Mesh,
        pool: ExpertPool,
        source: WeightSource,
        unit_client: UnitClient,
        model: MoeModel,
    ) -> None:
        """Make one.

        Args:
            mesh: Who is here with which capacity.
            pool: Of this node.
            source: This node's disk.
            unit_client: Fetches what the disk lacks.
            model: Says which experts there are, and in which dtype they are computed.
        """
        self._mesh = mesh
        self._pool = pool
        self._source = source
        self._unit_client = unit_client
        self.expert_bytes = {expert: model.expert_bytes[expert.layer] for expert in model.experts}
        self._dtype = model.dtype
        self.leaving = False
        self.plan = GuardianPlan({}, [], 0)
        self._stuck_since_s: float | None = None
        self._failed: dict[ExpertId, float] = {}

    @property
    def wanted(self) -> list[ExpertId]:
        """What this node should hold, most important first."""
        return self.plan.by_node.get(self._mesh.node, [])

    def solely_held(self) -> list[ExpertId]:
        """Residents that no other present node holds."""
        return [expert for expert in self._pool.experts() if not self._mesh.holders(expert)]

    async def run(self) -> None:
        """Keep until cancelled."""
        while True:
            self._replan()
            moved = not self.leaving and await self._step()
            if not moved:
                with trio.move_on_after(RETRY_S):
                    await self._mesh.wait_changed()
                await trio.sleep(0.02)  # let a burst of news arrive before planning anew

    def _replan(self) -> None:
        capacities: dict[NodeId, int] = {}
        if not self.leaving:
            capacities[self._mesh.node] = self._pool.capacity_bytes
        for node, view in self._mesh.serving().items():
            assert view.info is not None
            capacities[node] = view.info.capacity_bytes
        self.plan = plan_with_spare_place(self.expert_bytes, capacities)

    async def _step(self) -> bool:
        """Load some of what is wanted, or make room for it; returns whether anything changed."""
        now = trio.current_time()
        wanted = self.wanted
        missing = [e for e in wanted if e not in self._pool and self._failed.get(e, 0.0) <= now]
        keep = set(wanted)
        unwanted = [e for e in self._pool.experts() if e not in keep]
        droppable = [e for e in unwanted if self._mesh.holders(e)]
        for expert in droppable:
            self._pool.evict(expert)
        fitting = self._fitting(missing)
        if fitting:
            await self._load_all(fitting)
        # Where the mesh cannot hold the whole model, one hole for another is no gain: then nothing is dropped.
        stuck = bool(missing and unwanted) and not (fitting or droppable or self.plan.uncovered)
        return bool(droppable or fitting) or self._unblock(stuck, unwanted)

    def _fitting(self, missing: list[ExpertId]) -> list[ExpertId]:
        free_bytes = self._pool.free_bytes
        fitting: list[ExpertId] = []
        for expert in missing:
            free_bytes -= self.expert_bytes[expert]
            if free_bytes < 0 or len(fitting) == FETCHES_MAX:
                break
            fitting.append(expert)
        return fitting

    def _unblock(self, stuck: bool, unwanted: list[ExpertId]) -> bool:
        """When nothing has moved for long although it should, make room; returns whether it did."""
        now = trio.current_time()
        if not stuck or self._stuck_since_s is None:
            self._stuck_since_s = now if stuck else None
            return False
        if now - self._stuck_since_s < STUCK_S:
            return False
        self._stuck_since_s = None
        return self._drop_one_on_disk(unwanted)

    def _drop_one_on_disk(self, unwanted: list[ExpertId]) -> bool:
        for expert in unwanted:
            if self._source.has_expert(expert):
                logger.warning("no node can make room: dropping expert %s, which is on this node's disk", expert)
                self._pool.evict(expert)
                return True
        return False

    async def _load_all(self, experts: list[ExpertId]) -> None:
        async with trio.open_nursery() as nursery:
            for expert in experts:
                nursery.start_soon(self._load, expert)

    async def _load(self, expert: ExpertId) -> None:
        try:
            with self._pool.reserve(expert, self.expert_bytes[expert]) as reservation:
                await self._store(expert)
                weights = await trio.to_thread.run_sync(load_expert, self._source, expert, self._dtype)
                reservation.commit(weights)
                self._failed.pop(expert, None)
        except (PeerError, CheckpointError, CapacityError) as error:
            self._failed[expert] = trio.current_time() + RETRY_S
            logger.warning("cannot load expert %s: %s", expert, error)

    async def _store(self, expert: ExpertId) -> None:
        """See that the expert's unit is on this node's disk."""
        if self._source.has_expert(expert):
            return
        if not isinstance(self._source, PartialStore):
            raise CheckpointError(f"expert {expert} is not in {self._source.directory}")
        await self._unit_client.fetch(self._source, UnitName.of_expert(expert), lambda: self._mesh.sources(expert))


def plan_with_spare_place(expert_bytes: dict[ExpertId, int], capacity_bytes: dict[NodeId, int]) -> GuardianPlan:
    """The guardian plan with one place left free on every node that cannot hold all experts.

    If that leaves experts without a guardian which the spare places could hold, there are no spare places.

    Args:
        expert_bytes: Size of every expert.
        capacity_bytes: Of every node that takes part.
    """
    sizes = list(expert_bytes.items())
    total_bytes, place_bytes = sum(expert_bytes.values()), max(expert_bytes.values(), default=0)
    with_spare = {
        node: capacity if capacity >= total_bytes else max(0, capacity - place_bytes)
        for node, capacity in capacity_bytes.items()
    }
    plan = guardian_plan(sizes, with_spare)
    return plan if not plan.uncovered else guardian_plan(sizes, capacity_bytes)
