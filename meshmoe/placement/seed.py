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
from meshmoe.placement.trace import Ints
from meshmoe.placement.world import ModelShape


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
    names = sorted(nodes)
    room = np.array([int(capacity_bytes[nodes.index(name)]) for name in names])
    scores = rendezvous_scores(
        [ExpertId(layer, 0) for layer in range(shape.layers)], names, np.maximum(room, 1).tolist()
    )
    owner = np.full(shape.expert_bytes.shape, -1, np.int64)
    for layer in np.argsort(-shape.expert_bytes.max(axis=1), kind="stable"):
        for expert in np.flatnonzero(shape.exists[layer]):
            size = shape.expert_bytes[layer, expert]
            able = [node for node in np.argsort(-scores[layer], kind="stable") if room[node] >= size]
            if not able:
                raise ValueError("the nodes cannot hold the model together")
            owner[layer, expert] = nodes.index(names[able[0]])
            room[able[0]] -= size
    return owner
