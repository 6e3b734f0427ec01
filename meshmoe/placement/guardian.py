"""Which node should hold which expert when nothing is known of demand: weighted rendezvous hashing within byte budgets.

Every node computes this alone from the capacities it has heard of; nodes that have heard the same name the same
guardians, and a node that comes or goes moves few experts. It is the floor of the placement, not its aim: the mesh
is covered by it before anyone has measured anything.

Rendezvous hashing (Thaler & Ravishankar 1998) gives every (expert, node) pair a pseudo-random score and the expert to
the best-scored node. With the weighted form of Schindelhauer & Schomaker (2005), ``-weight / ln(u)``, a node is best
for a share of experts in proportion to its weight. Budgets are kept by taking the best-scored node that still has room.
Experts choose *slot* by slot: slot 0 names one guardian for every expert, slot 1 a second one on another node, and
so on while anyone has room, so that spare capacity becomes spare copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from meshmoe.core.ids import ExpertId, NodeId


class GuardianPlan(msgspec.Struct, frozen=True):
    """Who should hold what.

    Attributes:
        by_node: Experts of each node, those of slot 0 first.
        uncovered: Experts for which no node had room in slot 0.
        missing_bytes: Their bytes: what the mesh lacks.
    """

    by_node: dict[NodeId, list[ExpertId]]
    uncovered: list[ExpertId]
    missing_bytes: int


def guardian_plan(experts: Sequence[tuple[ExpertId, int]], capacity_bytes: Mapping[NodeId, int]) -> GuardianPlan:
    """Assign experts to nodes.

    Args:
        experts: Every expert with its size in bytes, in any order; the order does not change the plan.
        capacity_bytes: What each node may use for experts.

    Returns:
        The plan. It is the same on every node for equal arguments, on any machine (integer hashing; ties by name).
    """
    ordered = sorted(experts, key=lambda item: (-item[1], item[0]))  # large ones first, while there is room for them
    nodes = sorted(node for node, capacity in capacity_bytes.items() if capacity > 0)
    by_node: dict[NodeId, list[ExpertId]] = {node: [] for node in sorted(capacity_bytes)}
    if not nodes:
        return GuardianPlan(by_node, [e for e, _ in ordered], sum(size for _, size in ordered))
    room = [capacity_bytes[node] for node in nodes]
    preference = np.argsort(-rendezvous_scores([e for e, _ in ordered], nodes, room), axis=1, kind="stable").tolist()
    taken: list[set[int]] = [set() for _ in ordered]
    uncovered: list[ExpertId] = []
    for slot in range(len(nodes)):
        placed = 0
        for position, (expert, size) in enumerate(ordered):
            for node in preference[position]:
                if room[node] >= size and node not in taken[position]:
                    room[node] -= size
                    taken[position].add(node)
                    by_node[nodes[node]].append(expert)
                    placed += 1
                    break
            else:
                if slot == 0:
                    uncovered.append(expert)
        if uncovered or not placed:  # no spare copies of some while others have none at all
            break
    sizes = dict(ordered)
    return GuardianPlan(by_node, uncovered, sum(sizes[e] for e in uncovered))


def rendezvous_scores(
    experts: Sequence[ExpertId], nodes: Sequence[NodeId], weights: Sequence[int]
) -> NDArray[np.float64]:
    """``[experts, nodes]`` weighted rendezvous scores; larger is better."""
    node_seed = np.array(
        [int.from_bytes(hashlib.blake2b(node.encode(), digest_size=8).digest(), "big") for node in nodes],
        dtype=np.uint64,
    )
    expert_seed = np.array([(e.layer << 32) | e.index for e in experts], dtype=np.uint64)
    mixed = _mix(_mix(expert_seed)[:, None] ^ node_seed[None, :])
    uniform = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54  # never 0, never 1
    scores: NDArray[np.float64] = -np.array(weights, dtype=np.float64)[None, :] / np.log(uniform)
    return scores


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): a good hash of 64-bit integers, vectorised."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
