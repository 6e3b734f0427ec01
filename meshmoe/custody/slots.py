"""How many slots an expert has, who should fill them, and who is next if they do not.

The guardian plan (`meshmoe.placement.guardian`) fills slot after slot within the nodes' budgets, so an expert has as
many guardians as capacity allows; custody wants no more than `CustodyConfig.slots` of them. Claims may well stand
elsewhere, where the exchange has moved them: guardians matter when a slot is vacant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import lru_cache

import msgspec

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.placement.guardian import GuardianPlan, guardian_plan


class SlotPlan(msgspec.Struct, frozen=True):
    """Who should be custodian of what.

    Attributes:
        guardians: Of each expert, in the order of succession; as many as slots are wanted. Empty where capacity ends.
        missing_bytes: What the mesh lacks to hold every expert once.
    """

    guardians: Mapping[ExpertId, tuple[NodeId, ...]]
    missing_bytes: int

    def slots(self, expert: ExpertId) -> int:
        """How many custodians are wanted: at least one, capacity or not."""
        return max(1, len(self.guardians.get(expert, ())))


def plan_slots(expert_bytes: Mapping[ExpertId, int], capacity_bytes: Mapping[NodeId, int], slots: int) -> SlotPlan:
    """Name the guardians of all experts.

    Where the mesh can hold every expert once without it, one place of every node is left free: full nodes could not
    hand each other anything.

    Args:
        expert_bytes: Size of every expert.
        capacity_bytes: Of every node that takes part, as gossiped.
        slots: Most slots an expert may have.
    """
    sizes = list(expert_bytes.items())
    total_bytes, place_bytes = sum(expert_bytes.values()), max(expert_bytes.values(), default=0)
    spare = {
        node: capacity if capacity >= total_bytes else max(0, capacity - place_bytes)
        for node, capacity in capacity_bytes.items()
    }
    plan: GuardianPlan = guardian_plan(sizes, spare)
    if plan.uncovered:
        plan = guardian_plan(sizes, capacity_bytes)
    guardians: dict[ExpertId, list[NodeId]] = {}
    for node, experts in plan.by_node.items():
        for expert in experts:
            guardians.setdefault(expert, []).append(node)
    ordered = {expert: succession(expert, frozenset(nodes))[:slots] for expert, nodes in guardians.items()}
    return SlotPlan(ordered, plan.missing_bytes)


@lru_cache(maxsize=65_536)
def succession(expert: ExpertId, nodes: Collection[NodeId]) -> tuple[NodeId, ...]:
    """All of ``nodes`` in the expert's own order (rendezvous hashing, unweighted): the same on every node.

    Args:
        expert: Whose successors are named.
        nodes: A frozenset (results are remembered).
    """

    def score(node: NodeId) -> bytes:
        return hashlib.blake2b(f"{expert.layer}/{expert.index}/{node}".encode(), digest_size=8).digest()

    return tuple(sorted(nodes, key=lambda node: (score(node), node)))
