"""The lean path on a card: the same batches, sequences and scheduler, with forwards computed there.

What is to be read goes to the card, logits come back; keys, values and experts stay. A layer's input comes to the host
only where an expert is away, and its outputs go back from there. Each number of rows, filled up to a power of two, and
each reach of the context has a step of its own, made when it is first needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.cuda.blocks import DeviceBlocks
from meshmoe.engine.cuda.experts import warm_experts
from meshmoe.engine.cuda.step import DecodeStep, Missing
from meshmoe.engine.cuda.weights import DeviceWeights
from meshmoe.engine.job import Job
from meshmoe.engine.lean.attention import BLOCK_TOKENS
from meshmoe.engine.lean.away import Pair
from meshmoe.engine.lean.batch import LeanBatch, LeanEngine
from meshmoe.engine.lean.blocks import Sequence
from meshmoe.engine.lean.model import LeanModel
from meshmoe.engine.lean.resident import ResidentSnapshot
from meshmoe.engine.lean.row import Row
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import RemoteExperts

REACH_MIN = 1024
"""Shortest context that a step is made for; longer ones double."""


class CudaEngine(LeanEngine):
    """See the module."""

    def __init__(
        self,
        model: LeanModel,
        weights: DeviceWeights,
        pool: ExpertPool,
        experts_per_layer: Rows[int],
        remote: RemoteExperts | None,
        counts: ActivationCounts,
        kv_bytes: int,
    ) -> None:
        """Take memory on the card.

        Args:
            model: Its plan says what the family is; its weights on the host are not read.
            weights: The trunk on the card.
            pool: Its experts lie on the card.
            experts_per_layer: Of all MoE layers.
            remote: The mesh.
            counts: Of the node.
            kv_bytes: Room for keys and values, on the card.
        """
        self.weights = weights
        super().__init__(model, pool, experts_per_layer, remote, counts, 0)
        self.blocks = DeviceBlocks(weights, kv_bytes)
        self._spare: dict[tuple[int, int], list[DecodeStep]] = {}
        self._shown: ResidentSnapshot | None = None
        warm_experts(weights.shape, weights.dtype, weights.device)

    def batch(self, job: Job) -> LeanBatch:
        """See `LeanEngine.batch`."""
        return CudaBatch(self, job)

    @contextmanager
    def step(self, rows: int, reach: int) -> Iterator[DecodeStep]:
        """A step for so many rows of texts up to ``reach`` tokens, for one forward alone: it may wait for peers."""
        size = 1 << (rows - 1).bit_length(), max(REACH_MIN, 1 << (reach - 1).bit_length())
        spare = self._spare.setdefault(size, [])
        blocks = self.blocks
        assert isinstance(blocks, DeviceBlocks)
        step = spare.pop() if spare else DecodeStep(self.weights, blocks, *size)
        try:
            yield step
        finally:
            spare.append(step)

    def show(self, snapshot: ResidentSnapshot) -> None:
        """Have the card see these residents in whatever is computed next."""
        if snapshot is not self._shown:
            self.weights.experts.copy_(torch.from_numpy(snapshot.addresses))
            self._shown = snapshot  # which keeps the weights


class CudaBatch(LeanBatch):
    """See `LeanBatch`."""

    def __init__(self, engine: CudaEngine, job: Job) -> None:
        super().__init__(engine, job)
        self._card = engine

    def forward(self, rows: Rows[Row]) -> Tensor:
        """See `LeanBatch.forward`."""
        self._rows, self._calls_away, self.waited_s = rows, [], 0.0
        began = perf_counter()
        lengths, positions = self._positions(rows)
        self._work.fit(len(rows), 1)
        with self._card.step(len(rows), max(lengths.values())) as step:
            logits = self._run_step(step, rows, positions)
        self._count_activations(rows)
        self._count(rows)
        self.computed_s = perf_counter() - began - self.waited_s
        for sequence, length in lengths.items():
            sequence.length = length
        return logits

    def _run_step(self, step: DecodeStep, rows: Rows[Row], positions: list[int]) -> Tensor:
        self._fill(step, rows, positions)
        snapshot = self._card.resident.snapshot()
        self._card.show(snapshot)
        missing = step.run()
        while missing is not None:
            self._look()
            outputs = self._fetch(missing)
            self._card.show(snapshot)  # another batch may have shown a later one meanwhile
            missing = step.resume(missing, outputs)
        self._work.chosen[:, : len(rows)] = step.chosen[:, : len(rows)].cpu().numpy()
        return step.logits[[at for at, row in enumerate(rows) if row.logits]].float().cpu()

    def _positions(self, rows: Rows[Row]) -> tuple[dict[Sequence, int], list[int]]:
        """Have room for the rows; returns the lengths to come, and where each row stands."""
        lengths: dict[Sequence, int] = {}
        positions = []
        for row in rows:
            at = lengths.get(row.sequence, row.sequence.length)
            positions.append(at)
            lengths[row.sequence] = at + 1
            for sequence in row.also:
                assert lengths.get(sequence, sequence.length) == at
                lengths[sequence] = at + 1
        for sequence, length in lengths.items():
            sequence.reserve(length - sequence.length)
        return lengths, positions

    def _fill(self, step: DecodeStep, rows: Rows[Row], positions: list[int]) -> None:
        """Tell the card what to read; rows that fill up read the idle block."""
        tokens, at, local, tables, also_from, also = step.inputs.here
        tokens[len(rows) :], at[len(rows) :], local[len(rows) :] = 0, 0, True
        tables[:] = self._card.blocks.idle  # type: ignore[attr-defined]  # of `DeviceBlocks`, which it is
        also_from[:] = 0
        forks = 0
        for number, (row, position) in enumerate(zip(rows, positions, strict=True)):
            used = position // BLOCK_TOKENS + 1
            tokens[number], at[number], local[number] = row.token, position, row.local
            tables[number, :used] = row.sequence.table[:used]
            for sequence in row.also:
                also[forks] = sequence.table[used - 1]
                forks += 1
            also_from[number + 1 :] = forks
        step.inputs.send()

    def _fetch(self, missing: Missing) -> Tensor:
        """Have the mesh compute what a layer lacks; returns the outputs."""
        found_away = missing.experts.tolist(), missing.rows.tolist(), missing.places.tolist()
        pairs: list[Pair] = list(zip(*found_away, strict=True))
        self._work.normed[: len(self._rows)] = missing.hidden_here[: len(self._rows)]
        self._receive(self._away.ask(self._rows, missing.layer, pairs))
        outputs = self._work.outputs.view(-1, self._model.plan.top_k, self._work.normed.shape[1])
        return outputs[missing.rows, missing.places]

    def _count_activations(self, rows: Rows[Row]) -> None:
        counts = self._card.counts
        for kind, layers in ((True, counts.decode), (False, counts.prefill)):
            which = [at for at, row in enumerate(rows) if row.decode == kind and not row.local]
            for layer, counter in enumerate(layers):
                chosen: NDArray[np.int64] = self._work.chosen[layer, which].reshape(-1)
                np.add.at(counter, chosen[chosen >= 0], 1)
