"""A node's own demand in a running mesh: a sample of its routing sets that fades, and what gossip tells of it."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meshmoe.gossip import Demand
from meshmoe.gossip.packing import RATE_STEPS, RATE_UNIT
from meshmoe.placement.reservoir import Reservoir
from meshmoe.placement.trace import Floats, Steps, Trace, no_steps

TOKENS_KEPT = 1024
"""Decode steps in the sample. Costs are means over it: 1,024 tell 5 rounds a token within 2 % or so."""

CHUNKS_KEPT = 64
"""Prefill steps: each has hundreds of rows, so few of them tell as much."""

NEWS_STEPS = 3
"""A layer's demand is told again when an expert's rate is off by more than so many steps of a byte: by 30 %."""

NEWS_BYTES_PER_S = 600
"""Of demand, told layer by layer: 4 % of what gossip may send among ten nodes."""


class _Chunk(NamedTuple):
    """``[layers, slots]`` of a prompt's chunk: the distinct experts, -1 beyond them, and the rows of each."""

    experts: NDArray[np.int16]
    rows: NDArray[np.int32]
    tokens: int


class DemandKeeper:
    """Takes in routing sets, gives out a `Trace`."""

    def __init__(self, layers: int, experts: int, half_life_s: float, rng: random.Random, now: float) -> None:
        """Start without demand.

        Args:
            layers: MoE layers.
            experts: In the largest of them.
            half_life_s: What came so long ago counts half.
            rng: Decides what is kept.
            now: Monotonic seconds.
        """
        self._layers, self._experts = layers, experts
        self._decode: Reservoir[NDArray[np.int16]] = Reservoir(TOKENS_KEPT, half_life_s, rng, now)
        self._prefill: Reservoir[_Chunk] = Reservoir(CHUNKS_KEPT, half_life_s, rng, now)
        self.tokens = 0
        """Of both kinds, since the start."""

    def add(self, sets: NDArray[np.int16], at_s: float, *, decode: bool) -> None:
        """Take in a forward pass: ``[tokens, layers, k]``, -1 where a token called no expert."""
        if sets.shape[1] != self._layers:
            return
        self.tokens += len(sets)
        if decode:
            for token in sets:
                self._decode.add(token, at_s)
        else:
            self._prefill.add(self._chunk(sets), at_s)

    def recent(self, windows: int, tokens: int) -> NDArray[np.int16]:
        """The latest decode sets kept, as ``[windows, tokens, layers, k]``; fewer windows if there are not so many."""
        kept = self._decode.items()[-windows * tokens :]
        whole = len(kept) // tokens
        return np.stack(kept[len(kept) - whole * tokens :]).reshape(whole, tokens, *kept[0].shape) if whole else _NONE

    def trace(self, now: float) -> Trace:
        """The demand as it is now."""
        decode, prefill = self._decode.items(), self._prefill.items()
        steps = no_steps(self._layers)
        if decode:
            experts = np.stack(decode)
            rows = (experts >= 0).astype(np.int32)
            steps = Steps(experts, rows, self._decode.rates(now), np.ones(len(decode), np.int32))
        chunks = no_steps(self._layers)
        if prefill:
            tokens = np.array([chunk.tokens for chunk in prefill], np.int32)
            experts, rows = np.stack([chunk.experts for chunk in prefill]), np.stack([chunk.rows for chunk in prefill])
            chunks = Steps(experts, rows, self._prefill.rates(now), tokens)
        return Trace(steps, chunks)

    def _chunk(self, sets: NDArray[np.int16]) -> _Chunk:
        experts = np.full((self._layers, self._experts), -1, np.int16)
        rows = np.zeros((self._layers, self._experts), np.int32)
        for layer in range(self._layers):
            chosen = sets[:, layer].ravel()
            counts = np.bincount(chosen[chosen >= 0], minlength=self._experts)
            used = np.flatnonzero(counts)
            experts[layer, : len(used)], rows[layer, : len(used)] = used, counts[used]
        return _Chunk(experts, rows, len(sets))


_NONE = np.zeros((0, 0, 0, 0), np.int16)


def quantised(rates_per_s: Floats) -> NDArray[np.uint8]:
    """Rates as bytes, as `meshmoe.gossip.packing.pack_rate` makes them one by one."""
    with np.errstate(divide="ignore"):
        steps = 1 + np.rint(RATE_STEPS * np.log2(np.maximum(rates_per_s, RATE_UNIT / 4) / RATE_UNIT))
    return np.where(rates_per_s < RATE_UNIT / 2, 0, np.clip(steps, 1, 255)).astype(np.uint8)


class DemandNews:
    """What of this node's demand gossip has not been told: a few layers at a time, those that are off, in turn."""

    def __init__(self, layers: int, experts: int) -> None:
        self._told = np.zeros((layers, experts), np.int16)
        self._next = 0

    def of(self, demand: Floats, budget_bytes: int = NEWS_BYTES_PER_S) -> tuple[Demand, ...]:
        """Entries to tell now.

        Args:
            demand: ``[layers, experts]``, calls a second.
            budget_bytes: Enough for one layer at least.
        """
        now = quantised(demand).astype(np.int16)
        off = np.abs(now - self._told).max(axis=1) > NEWS_STEPS
        layers, experts = now.shape
        order = [(self._next + i) % layers for i in range(layers)]
        news = [layer for layer in order if off[layer]][: max(1, budget_bytes // (experts + 16))]
        for layer in news:
            self._told[layer] = now[layer]
            self._next = (layer + 1) % layers
        return tuple(Demand(layer, now[layer].astype(np.uint8).tobytes().rstrip(b"\0")) for layer in news)


def drift(before: Floats, after: Floats) -> float:
    """How different two demands are: 0 if they are the same, 1 if they have nothing in common."""
    larger = float(np.maximum(before, after).sum())
    return float(np.abs(before - after).sum()) / larger if larger else 0.0
