"""How often this node's own requests chose each expert: the raw material of demand, which gossip decays and spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ActivationCounts:
    """Tokens routed to each expert since the start; only ever growing.

    Attributes:
        decode: For each MoE layer, int64 ``[n_experts]``: in decode steps.
        prefill: The same, while reading prompts.
    """

    decode: tuple[Counts, ...]
    prefill: tuple[Counts, ...]

    @classmethod
    def zeros(cls, experts_per_layer: Sequence[int]) -> ActivationCounts:
        """Nothing counted yet, for layers with these numbers of experts."""
        return cls(*(tuple(np.zeros(n, np.int64) for n in experts_per_layer) for _ in range(2)))

    def add(self, layer: int, expert: int, tokens: int, *, decode: bool) -> None:
        """Count ``tokens`` routed to an expert. Only the compute thread calls this."""
        (self.decode if decode else self.prefill)[layer][expert] += tokens

    def copy(self) -> ActivationCounts:
        """A snapshot, on any thread; a layer being counted at this moment may be half in it."""
        return ActivationCounts(tuple(map(np.copy, self.decode)), tuple(map(np.copy, self.prefill)))
