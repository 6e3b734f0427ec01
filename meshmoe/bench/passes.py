"""Passes with drafts, from recorded routing, and our placement policy with an eye to them."""

from __future__ import annotations

from collections.abc import Sequence

from meshmoe.bench.placement import TOKENS_PER_S
from meshmoe.bench.recorded import Windows
from meshmoe.placement.drafted import DraftDemand, drafting_world
from meshmoe.placement.policies import Negotiated
from meshmoe.placement.trace import Steps, prefill_steps
from meshmoe.placement.world import Holders, World

LENGTHS = (1, 2, 4, 6, 8)
"""Numbers of drafts that are tried."""


def passes_of(generated: Windows, experts: int) -> dict[int, Steps]:
    """Passes over tokens that followed each other, by number of drafts.

    Drafts that are wrong are taken to be routed as the right ones are.

    Args:
        generated: ``[windows, tokens, layers, top_k]``.
        experts: Experts in a layer.
    """
    found = {}
    for length in LENGTHS:
        size = length + 1
        begins = range(0, generated.shape[1] - size + 1, size)
        chunks = [window[begin : begin + size] for window in generated for begin in begins]
        if chunks:
            found[length] = prefill_steps(chunks, TOKENS_PER_S / size, experts)
    return found


class ForDrafts:
    """Our policy, in the world as drafts make it; a policy of its own where ways to place are compared."""

    name = "for drafts"

    def __init__(self, demands: Sequence[DraftDemand]) -> None:
        """Place for these passes, one demand a node."""
        self._demands = demands

    def place(self, world: World) -> Holders:
        """Place without regard to drafts first, then for drafts as they would be there."""
        policy = Negotiated()
        return policy.place(drafting_world(world, self._demands, policy.place(world)))
