"""One request's decode steps on the lean path: its working memory, its cache, and the layers that need the mesh.

The compiled step is entered for several layers at once, as many as take about a millisecond together, because between
two entries the compute thread looks after more urgent work. Where it is cut does not change a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meshmoe.engine.compute import Call
from meshmoe.engine.dispatch import RequestDispatch
from meshmoe.engine.kernels.arithmetic import linear
from meshmoe.engine.kernels.primitives import F32_TAG
from meshmoe.engine.lean.attention import normalise
from meshmoe.engine.lean.model import LeanModel, Workspace
from meshmoe.engine.lean.resident import ResidentSnapshot, ResidentTable
from meshmoe.engine.lean.step import compute_resident, embed, run
from meshmoe.engine.lean.tables import Layer, Number, Place, Shape
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.routing import Group

_ROW_0 = torch.zeros(1, dtype=torch.int64)
_HEAD_BLOCK_BYTES = 8 << 20
"""Of the logits' weights, computed between two looks."""


class LeanEngine:
    """The lean path of one engine: a model and the engine's resident experts."""

    def __init__(self, model: LeanModel, pool: ExpertPool, experts_per_layer: Sequence[int]) -> None:
        self._model = model
        self._resident = ResidentTable(pool, experts_per_layer, model.plan.embedding.dtype)

    def request(self, dispatch: RequestDispatch) -> LeanRequest:
        """Make the decode steps of a request."""
        return LeanRequest(self._model, dispatch, self._resident)


class LeanRequest:
    """Decode steps of one request."""

    def __init__(self, model: LeanModel, dispatch: RequestDispatch, resident: ResidentTable) -> None:
        self._model = model
        self._dispatch = dispatch
        self._resident = resident
        self._work = Workspace(model.plan)
        self._counters = np.array([layer.ctypes.data for layer in dispatch.counts.decode], np.int64)
        self._cache: Any = None
        self._cache_table = np.zeros((len(model.plan.layers), 3), np.int64)
        self._room = 0
        self._written = 0
        """Tokens in the cache's room that the cache has not been told of."""

    def step(self, token: int, position: int, cache: Any) -> Tensor:
        """Read one token.

        Args:
            token: The token.
            position: How many tokens were read before.
            cache: What was read before; grows by the token. Only this may write to it from the first step on.

        Returns:
            The token's logits, ``[V]`` float32, rounded to the model's dtype.

        Raises:
            ExpertUnavailableError: An expert cannot be had.
            PeerError: The mesh answered something else than what was asked.
            JobCancelled: The asking task was cancelled.
        """
        model, plan, places = self._model, self._model.plan, self._work.places
        stats = self._dispatch.stats
        self._enter(cache, position)
        cos, sin = model.rotation(position)
        places[Place.COS], places[Place.SIN] = cos.data_ptr(), sin.data_ptr()
        embed(plan.tag, plan.embedding.data_ptr(), token, int(places[Place.X]), int(plan.shape[Shape.HIDDEN]))
        at, last, joining, remote = 0, len(plan.layers), False, 0
        while at < last:
            self._dispatch.job.checkpoint()
            snapshot = self._resident.snapshot()
            end = min(last, at + model.layers_a_slice)
            began = perf_counter()
            reached = self._run(snapshot, position, at, end, joining)
            model.account(perf_counter() - began, (reached if reached >= 0 else -reached) - at)
            joining = reached < 0
            at = -1 - reached if joining else reached
            if joining:
                missing = self._missing(snapshot, at)
                remote += len(missing)
                stats.expert_calls_remote += len(missing)
                call, hidden = self._send(snapshot, at, missing)
                del snapshot  # it would keep what is evicted while the job is parked
                self._receive(call, at, hidden, missing)
        stats.expert_calls_local += model.expert_calls - remote
        self._written += 1
        self._dispatch.counts.log.add(self._work.chosen[None], decode=True)
        return self._logits()

    def _enter(self, cache: Any, position: int) -> None:
        """Have room for the token."""
        if cache is self._cache and position < self._room:
            return
        if cache is self._cache:
            for layer in cache.layers:
                layer.advance(self._written)
        self._cache, self._written = cache, 0
        for row, layer in zip(self._cache_table, cache.layers, strict=True):
            keys, values = layer.room()
            row[:] = keys.data_ptr(), values.data_ptr(), keys.shape[-2]
        self._room = int(self._cache_table[:, 2].min())
        assert position < self._room
        self._work.fit(self._room)

    def _run(self, snapshot: ResidentSnapshot, position: int, begin: int, end: int, joining: bool) -> int:
        plan, work = self._model.plan, self._work
        return run(
            plan.tag,
            plan.shape,
            plan.numbers,
            plan.layers,
            work.places,
            snapshot.addresses,
            self._cache_table,
            self._counters,
            work.chosen,
            position,
            begin,
            end,
            joining,
        )

    def _missing(self, snapshot: ResidentSnapshot, at: int) -> dict[int, int]:
        """Experts that a layer chose and that are not resident, ascending, with their places among the chosen."""
        moe, top_k = self._model.plan.layers[at, [Layer.MOE, Layer.TOP_K]].tolist()
        chosen = self._work.chosen[moe, :top_k]
        absent = snapshot.addresses[moe, chosen, 0] == 0
        return {expert: place for place, expert in enumerate(chosen.tolist()) if absent[place]}

    def _send(
        self, snapshot: ResidentSnapshot, at: int, missing: dict[int, int]
    ) -> tuple[Call[dict[int, Tensor]], Tensor]:
        """Send out for the missing experts, then compute the others."""
        plan, work = self._model.plan, self._work
        row = plan.layers[at]
        moe = int(row[Layer.MOE])
        hidden = torch.from_numpy(work.normed).to(plan.embedding.dtype, copy=True).unsqueeze(0)
        call = self._dispatch.send(moe, hidden, _groups(missing))
        try:
            compute_resident(plan.tag, plan.shape, row, work.places, snapshot.addresses[moe], work.chosen[moe])
        except BaseException:
            call.abandon()
            raise
        return call, hidden

    def _receive(self, call: Call[dict[int, Tensor]], at: int, hidden: Tensor, missing: dict[int, int]) -> None:
        """Wait for the missing experts' outputs and put them where the others' are."""
        moe = int(self._model.plan.layers[at, Layer.MOE])
        replies = self._dispatch.receive(call, moe, hidden, _groups(missing))
        for expert, place in missing.items():
            self._work.outputs[place] = replies[expert][0].float().numpy()

    def _logits(self) -> Tensor:
        plan, places = self._model.plan, self._work.places
        weight, bias = plan.norm
        vocabulary, hidden = plan.head.shape
        x, normed = int(places[Place.X]), int(places[Place.NORMED])
        bias_at = 0 if bias is None else bias.data_ptr()
        kind, eps = int(plan.shape[Shape.NORM]), plan.numbers[Number.NORM_EPS]
        normalise(plan.tag, kind, weight.data_ptr(), bias_at, eps, x, normed, hidden)
        logits = torch.empty(vocabulary)
        size = plan.head.element_size()
        block = max(1, _HEAD_BLOCK_BYTES // (hidden * size))
        for begin in range(0, vocabulary, block):
            if begin:
                self._dispatch.job.checkpoint()
            rows = plan.head.data_ptr() + begin * hidden * size
            head_bias = 0 if plan.head_bias is None else plan.head_bias.data_ptr() + begin * size
            out, count = logits.data_ptr() + begin * F32_TAG.itemsize, min(block, vocabulary - begin)
            linear(plan.tag, rows, head_bias, normed, out, 1, count, hidden)
        return logits


def _groups(missing: dict[int, int]) -> list[Group]:
    return [Group(expert, _ROW_0) for expert in missing]
