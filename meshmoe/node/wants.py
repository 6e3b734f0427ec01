"""What placement wants resident on this node beside what custody needs.

Once the exchange's plans have settled (`meshmoe.placement.live`), that is this node's plan, and of what is resident
already as much as there is room for: nothing is dropped for nothing. Before there is demand, or where the mesh has too
little room for exchanges, it is the guardian plan, filled to the brim.

The guardian plan is computed from the capacities that gossip shows. One place is left free on every node that cannot
hold all experts: full nodes could not hand each other anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip import NodeView
from meshmoe.placement.guardian import GuardianPlan, guardian_plan


class Wants:
    """Keeps the plan up to date with the view."""

    def __init__(self, node: NodeId, expert_bytes: Mapping[ExpertId, int], capacity_bytes: int) -> None:
        """Plan for this node alone.

        Args:
            node: This node.
            expert_bytes: Size of every expert.
            capacity_bytes: This node's budget for experts.
        """
        self._node = node
        self._expert_bytes = dict(expert_bytes)
        self._capacity_bytes = capacity_bytes
        self._capacities: dict[NodeId, int] = {}
        self.plan = GuardianPlan({}, [], 0)
        self.experts: tuple[ExpertId, ...] = ()
        self._settled = False

    def update(self, serving: Mapping[NodeId, NodeView]) -> bool:
        """Take in the other nodes that serve; returns whether the wants have changed."""
        if self._settled:
            return False
        capacities = {node: view.info.capacity_bytes for node, view in serving.items() if view.info is not None}
        capacities[self._node] = self._capacity_bytes
        if capacities == self._capacities:
            return False
        self._capacities = capacities
        self.plan = plan_with_spare_place(self._expert_bytes, capacities)
        experts = tuple(self.plan.by_node.get(self._node, ()))
        changed, self.experts = experts != self.experts, experts
        return changed

    def settle(self, planned: Sequence[ExpertId], resident: Iterable[ExpertId]) -> None:
        """Take in a plan that has come to rest, most wanted first; the guardian plan does not count any more."""
        self._settled = True
        wanted = dict.fromkeys(planned)
        place_bytes = max(self._expert_bytes.values(), default=0)
        room_bytes = self._capacity_bytes - place_bytes - sum(self._expert_bytes[expert] for expert in wanted)
        for expert in sorted(set(resident) - wanted.keys()):
            room_bytes -= self._expert_bytes[expert]
            if room_bytes < 0:
                break
            wanted[expert] = None
        self.experts = tuple(wanted)


def plan_with_spare_place(expert_bytes: Mapping[ExpertId, int], capacity_bytes: Mapping[NodeId, int]) -> GuardianPlan:
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
