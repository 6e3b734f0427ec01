"""How many slots an expert has, who should fill them, and who is next if they do not.

The guardian plan (`meshmoe.placement.guardian`) fills slot after slot within the nodes' budgets, so an expert has as
many guardians as capacity allows; custody wants no more than `CustodyConfig.slots` of them.

Once nodes have agreed by exchange who should hold what, that comes first: the planned holders are the guardians, the
owner before the copies, and rendezvous hashing gives second guardians in the room that the plans leave. So copies for
speed and copies for safety are the same ones as far as they can be. Where there is room for all slots of every expert,
planned copies beyond the slots get what is left. Where there is not, some crash loses copies anyhow, and planned copies
take their room before second guardians of other experts, which would keep them out for ever; only an expert's first
guardian goes before them. Plans may be old, or differ between views: that costs a needless claim or a slot that is
filled late, as a wrong view of capacities would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

import msgspec

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.placement.guardian import GuardianPlan, guardian_plan, rendezvous_scores


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


def planned_slots(
    expert_bytes: Mapping[ExpertId, int],
    capacity_bytes: Mapping[NodeId, int],
    slots: int,
    planned: Mapping[ExpertId, tuple[NodeId, ...]],
) -> SlotPlan:
    """Name the guardians of all experts where nodes have agreed who should hold what.

    Args:
        expert_bytes: Size of every expert.
        capacity_bytes: Of every node that takes part, as gossiped; planned holders that do not are passed over.
        slots: Most slots an expert may have.
        planned: Holders of experts, the owner first; experts that nobody plans to hold may be missing.
    """
    total_bytes, place_bytes = sum(expert_bytes.values()), max(expert_bytes.values(), default=0)
    room = {
        node: capacity if capacity >= total_bytes else max(0, capacity - place_bytes)
        for node, capacity in capacity_bytes.items()
    }
    guardians: dict[ExpertId, list[NodeId]] = {}
    for expert, size in expert_bytes.items():
        guardians[expert] = [node for node in planned.get(expert, ()) if node in room][:slots]
        for node in guardians[expert]:
            room[node] -= size
    experts, nodes = sorted(expert_bytes), sorted(room)
    scores = rendezvous_scores(experts, nodes, [max(1, room[node]) for node in nodes])
    preference = dict(zip(experts, (-scores).argsort(axis=1, kind="stable").tolist(), strict=True))

    def fill(some: Iterable[ExpertId], wanted: int) -> None:
        for expert in some:
            for place in preference[expert]:
                if len(guardians[expert]) >= wanted:
                    break
                node = nodes[place]
                if room[node] >= expert_bytes[expert] and node not in guardians[expert]:
                    guardians[expert].append(node)
                    room[node] -= expert_bytes[expert]

    fill(experts, 1)
    first, first_room = {expert: list(named) for expert, named in guardians.items()}, dict(room)
    for count in range(2, slots + 1):
        fill(experts, count)
    if any(len(named) < slots for named in guardians.values()):
        guardians, room = first, first_room
        for expert, size in expert_bytes.items():
            for node in [node for node in planned.get(expert, ()) if node in room][slots:]:
                room[node] -= size
        for count in range(2, slots + 1):
            fill(experts, count)
    for node, capacity in capacity_bytes.items():
        room[node] += min(capacity, place_bytes) if capacity < total_bytes else 0
    fill(experts, 1)  # the spare places, where there is nothing else
    # Memory is lost where a node's rest is smaller than an expert, so bytes alone do not say that everything fits.
    unguarded_bytes = sum(size for expert, size in expert_bytes.items() if not guardians[expert])
    missing_bytes = max(unguarded_bytes, total_bytes - sum(capacity_bytes.values()), 0)
    return SlotPlan({expert: tuple(named) for expert, named in guardians.items() if named}, missing_bytes)


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
