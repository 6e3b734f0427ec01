"""Which layers' holdings have changed since they were last told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from meshmoe.core.ids import ExpertId
from meshmoe.gossip.values import Holdings


class HoldingsNews:
    """Remembers what was told; one for each node."""

    def __init__(self) -> None:
        self._told: dict[int, frozenset[int]] = {}

    def of(self, resident: Iterable[ExpertId]) -> list[Holdings]:
        """What there is to tell: layers that changed, those that became empty too.

        Args:
            resident: All experts that are resident now.
        """
        layers: dict[int, set[int]] = defaultdict(set)
        for expert in resident:
            layers[expert.layer].add(expert.index)
        changed = [
            Holdings.of(layer, layers.get(layer, ()))
            for layer in sorted({*layers, *self._told})
            if self._told.get(layer, frozenset()) != layers.get(layer, set())
        ]
        self._told = {layer: frozenset(indices) for layer, indices in layers.items()}
        return changed

    def of_one(self, expert: ExpertId, resident: bool) -> list[Holdings]:
        """What there is to tell when one expert has come or gone; looks at its layer only.

        Args:
            expert: Which.
            resident: Whether it is resident now.
        """
        before = self._told.get(expert.layer, frozenset())
        now = before | {expert.index} if resident else before - {expert.index}
        if now == before:
            return []
        self._told[expert.layer] = now
        return [Holdings.of(expert.layer, now)]
