"""How often this node's own requests chose each expert: the raw material of demand, which gossip decays and spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from meshmoe.engine.routing_log import RoutingLog

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ActivationCounts:
    """Tokens routed to each expert since the start; only ever growing.

    Attributes:
        decode: For each MoE layer, int64 ``[n_experts]``: in decode steps.
        prefill: The same, while reading prompts.
        log: Whole routing sets; the demand that placement decides on is made of them.
    """

    decode: tuple[Counts, ...]
    prefill: tuple[Counts, ...]
    log: RoutingLog = field(default_factory=RoutingLog)

    @classmethod
    def zeros(cls, experts_per_layer: Sequence[int]) -> ActivationCounts:
        """Nothing counted yet, for layers with these numbers of experts."""
        decode, prefill = (tuple(np.zeros(n, np.int64) for n in experts_per_layer) for _ in range(2))
        return cls(decode, prefill)

    def add(self, layer: int, expert: int, tokens: int, *, decode: bool) -> None:
        """Count ``tokens`` routed to an expert. Only the compute thread calls this."""
        (self.decode if decode else self.prefill)[layer][expert] += tokens

    def copy(self) -> ActivationCounts:
        """A snapshot, on any thread; a layer being counted at this moment may be half in it."""
        return ActivationCounts(tuple(map(np.copy, self.decode)), tuple(map(np.copy, self.prefill)))
