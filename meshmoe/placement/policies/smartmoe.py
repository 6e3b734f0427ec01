"""SmartMoE: balance the load, without copies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from meshmoe.placement.policies.base import balance, pack
from meshmoe.placement.trace import Floats, Ints
from meshmoe.placement.world import Holders, World


class SmartMoE:
    """Every layer's experts, most called first, each to the node with the least load so far.

    Source: the online placement of SmartMoE (Zhai et al., USENIX ATC 2023), whose search over parallel strategies has
    no counterpart here. Adaptation: load and number of experts are measured by a node's capacity.
    """

    name = "SmartMoE"

    def place(self, world: World) -> Holders:
        """One holder for every expert."""
        return balance(world, _spread)


def _spread(load: Floats, slots: Ints, held: NDArray[np.bool_]) -> None:
    for node, experts in enumerate(pack(load, slots)):
        held[node, experts] = True
