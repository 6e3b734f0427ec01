"""Where a mesh begins: every layer has guardian nodes, and each node fills what is left with what it wants most.

As in `meshmoe.placement.guardian` the floor is weighted rendezvous hashing within byte budgets, so that nodes with the
same capacities in view name the same owners without a message. Here whole *layers* are hashed: a node that owns a layer
whole never waits there, while one that owns a third of every layer waits nearly everywhere. Layers choose in order; a
layer that its best node has no room for continues on the next best. The largest experts go first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.placement.guardian import rendezvous_scores
from meshmoe.placement.table import Mask
from meshmoe.placement.trace import Ints
from meshmoe.placement.world import Holders, ModelShape


def guardian_owners(shape: ModelShape, nodes: Sequence[NodeId], capacity_bytes: Ints) -> Ints:
    """Give every expert an owner.

    Args:
        shape: The model.
        nodes: In any order; the owners do not depend on it.
        capacity_bytes: ``[nodes]``.

    Returns:
        ``[layers, experts]`` positions in ``nodes``; -1 where there is no such expert.

    Raises:
        ValueError: The nodes cannot hold the model together.
    """
    held = np.zeros((len(nodes), *shape.expert_bytes.shape), bool)
    owner = missing_owners(shape, nodes, capacity_bytes, shape.exists, held)
    if ((owner < 0) & shape.exists).any():
        raise ValueError("the nodes cannot hold the model together")
    return owner


def missing_owners(shape: ModelShape, nodes: Sequence[NodeId], room_bytes: Ints, missing: Mask, held: Holders) -> Ints:
    """Give owners to experts that have none, as far as there is room.

    An expert goes to a node that plans to hold it anyway if there is one, else to its layer's guardian.

    Args:
        shape: The model.
        nodes: In any order; the owners do not depend on it.
        room_bytes: ``[nodes]``, what is not owned already.
        missing: ``[layers, experts]``.
        held: ``[nodes, layers, experts]``, present plans.

    Returns:
        ``[layers, experts]`` positions in ``nodes``; -1 for what is not missing, and where there is no room.
    """
    names = sorted(nodes)
    order = [nodes.index(name) for name in names]
    room = [int(room_bytes[node]) for node in order]
    scores = rendezvous_scores([ExpertId(layer, 0) for layer in range(shape.layers)], names, [max(1, r) for r in room])
    owner = np.full(shape.expert_bytes.shape, -1, np.int64)
    for layer in np.argsort(-shape.expert_bytes.max(axis=1), kind="stable"):
        preference = np.argsort(-scores[layer], kind="stable").tolist()
        for expert in np.flatnonzero(missing[layer] & shape.exists[layer]):
            size = int(shape.expert_bytes[layer, expert])
            able = [place for place in preference if room[place] >= size]
            able.sort(key=lambda place: not held[order[place], layer, expert])
            if able:
                owner[layer, expert] = order[able[0]]
                room[able[0]] -= size
    return owner
