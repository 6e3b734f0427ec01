"""Where the resident experts lie, as a table of addresses for compiled code.

Compiled code holds no references, so somebody must keep an expert's memory while it is computed with. A snapshot does:
it has the weights as well as their addresses, and whoever computes with it holds on to it. It never changes. When the
pool changes, the next one who asks gets a new snapshot, and the old one's evicted weights go with its last user.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import torch

from meshmoe.core.ids import ExpertId
from meshmoe.engine.lean.attention import Ints
from meshmoe.engine.pool import ExpertPool, PoolChange
from meshmoe.model.experts_modules import ExpertWeights


class ResidentSnapshot:
    """The pool's experts at one moment.

    Attributes:
        addresses: ``[layers, experts, 2]`` int64: gate-and-up projection, down projection; 0 for what is not resident.
        present: The same by layer and expert, as plain Python has it: whether it is resident.
    """

    def __init__(self, weights: dict[ExpertId, ExpertWeights], addresses: Ints) -> None:
        self._weights = weights
        self.addresses = addresses
        self.present: list[list[bool]] = (addresses[:, :, 0] != 0).tolist()


class ResidentTable:
    """Makes snapshots of a pool, on the compute thread; the pool may change on any other meanwhile."""

    def __init__(self, pool: ExpertPool, experts_per_layer: Sequence[int], dtype: torch.dtype) -> None:
        self._pool = pool
        self._shape = (len(experts_per_layer), max(experts_per_layer), 2)
        self._dtype = dtype
        self._current: ResidentSnapshot | None = None
        self._changes = 0
        # Weakly, because a pool may outlive its engine.
        myself = weakref.ref(self)

        def forget(_: PoolChange) -> None:
            table = myself()
            if table is not None:
                table._changes += 1
                table._current = None

        weakref.finalize(self, pool.subscribe(forget))

    def snapshot(self) -> ResidentSnapshot:
        """The resident experts as they are now, or were a moment ago."""
        current = self._current
        if current is None:
            changes = self._changes
            weights = self._pool.weights()
            current = self._current = ResidentSnapshot(weights, self._addresses(weights))
            if self._changes != changes:  # meanwhile: this one may be used, but not kept
                self._current = None
        return current

    def _addresses(self, weights: dict[ExpertId, ExpertWeights]) -> Ints:
        addresses = np.zeros(self._shape, np.int64)
        for expert, tensors in weights.items():
            gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
            if gate_up.dtype != self._dtype or down.dtype != self._dtype:
                raise ValueError(f"expert {expert} is in {gate_up.dtype}, the model computes in {self._dtype}")
            addresses[expert.layer, expert.index] = gate_up.data_ptr(), down.data_ptr()
        return addresses
