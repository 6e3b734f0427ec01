"""A node's own demand in a running mesh: a sample of its routing sets that fades, and what gossip tells of it.

Fading alone follows a change of use slowly, and each step on the way would move weights again. So the keeper looks for
the place at which its sample falls into two parts that differ most. If they differ so much that use must have changed,
and the latter part lasts a quarter of a half-life, the former is forgotten at once: then weights move once. Use that
changes to and fro faster than that is mixed use, and stays in the sample as such.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meshmoe.gossip import Demand
from meshmoe.gossip.packing import RATE_STEPS, RATE_UNIT
from meshmoe.placement.reservoir import Reservoir
from meshmoe.placement.trace import Floats, Steps, Trace, no_steps

CHANGED_MIN = 0.4
"""Total variation between two parts of a sample that means another use. Of the bundled model's recorded routing, 512
tokens of two domains differ by 0.35 to 0.8, and of one domain by 0.03 to 0.36: its documents differ, too."""

BEFORE_MIN = 256
"""Tokens that the former part must have to be compared."""

AFTER_MIN, AFTER_FAIR = 384, 512
"""Tokens that the latter part must have before the former is forgotten, for the next plan is made from them alone: the
larger number after a quarter of a half-life, the smaller one is enough after half of one."""

CHANGING_MIN = 64
"""So many tokens of another use are a reason to wait for what comes of it."""

LOOK_S = 2.0
"""How often the sample is searched at most."""

BLOCK = 32
"""The place is looked for in steps of so many tokens."""

TOKENS_KEPT = 1024
"""Decode steps in the sample. Costs are means over it: 1,024 tell 5 rounds a token within 2 % or so."""

CHUNKS_KEPT = 64
"""Prefill steps: each has hundreds of rows, so few of them tell as much."""

RUN = 9
"""Tokens that followed each other are kept in runs of so many: as long as the longest pass with drafts."""

RUNS_KEPT = 192
"""Such runs in a sample of their own."""

PROMPTS_MAX = 256
"""Prompts alone count as no more of a sample than so many decode steps: they tell what is used, not in what company."""

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
        self._half_life_s, self._rng = half_life_s, rng
        self._looked_s = now
        self._decode: Reservoir[NDArray[np.int16]] = Reservoir(TOKENS_KEPT, half_life_s, rng, now)
        self._prefill: Reservoir[_Chunk] = Reservoir(CHUNKS_KEPT, half_life_s, rng, now)
        self._runs: Reservoir[NDArray[np.int16]] = Reservoir(RUNS_KEPT, half_life_s, random.Random(0), now)
        self._run: list[NDArray[np.int16]] = []
        self.tokens = 0
        """Of both kinds, since the start."""
        self.changing = False
        """Whether use seems to be changing just now."""

    def add(self, sets: NDArray[np.int16], at_s: float, *, decode: bool) -> None:
        """Take in a forward pass: ``[tokens, layers, k]``, -1 where a token called no expert."""
        if sets.shape[1] != self._layers:
            return
        self.tokens += len(sets)
        if decode:
            for token in sets:
                self._decode.add(token, at_s)
                self._run.append(token)
                if len(self._run) == RUN:
                    self._runs.add(np.stack(self._run), at_s)
                    self._run = []
        else:
            self._prefill.add(self._chunk(sets), at_s)

    def forget_old_use(self, now: float) -> bool:
        """Forget what came before a change of use, if there was one; returns whether there was."""
        if now - self._looked_s < min(LOOK_S, self._half_life_s / 16):
            return False
        self._looked_s = now
        sets, arrivals = self._decode.items(), self._decode.arrivals()
        split = self._split(sets)
        since_s = now - arrivals[split] if split else 0.0
        after, quarter_s = len(sets) - split, self._half_life_s / 4
        lasts = split > 0 and (
            (after >= AFTER_FAIR and since_s >= quarter_s) or (after >= AFTER_MIN and since_s >= 2 * quarter_s)
        )
        self.changing = split > 0 and not lasts and since_s < self._half_life_s
        if lasts:
            self._decode, self._prefill = self._decode.since(arrivals[split]), self._prefill.since(arrivals[split])
            self._runs = self._runs.since(arrivals[split])
        return lasts

    def _split(self, sets: list[NDArray[np.int16]]) -> int:
        """Where the sample falls into two parts of different use; 0 if it does not."""
        blocks = [self._counts(sets[at : at + BLOCK]) for at in range(0, len(sets), BLOCK)]
        until = np.cumsum(blocks, axis=0) if blocks else np.zeros((0, 1, 1))
        best, split = 0.0, 0
        for block in range(BEFORE_MIN // BLOCK, (len(sets) - CHANGING_MIN) // BLOCK + 1):
            before, after = until[block - 1], until[-1] - until[block - 1]
            tokens = block * BLOCK, len(sets) - block * BLOCK
            variation = float(np.abs(_shares(before) - _shares(after)).sum(axis=1).mean()) / 2
            # A short part differs by chance: what counts is the difference in units of its noise.
            score = variation * math.sqrt(tokens[0] * tokens[1] / len(sets))
            if variation >= CHANGED_MIN and score > best:
                best, split = score, block * BLOCK
        return split

    def _counts(self, sets: list[NDArray[np.int16]]) -> Floats:
        """Calls of ``[layers, experts]`` in some steps."""
        chosen = np.stack(sets)
        counts = np.zeros((self._layers, self._experts))
        for layer in range(self._layers):
            experts = chosen[:, layer].ravel()
            counts[layer] = np.bincount(experts[experts >= 0], minlength=self._experts)
        return counts

    def windows(self, tokens: int) -> NDArray[np.int16]:
        """The decode steps in the sample, in windows: ``[windows, tokens, layers, k]``, without the oldest few."""
        kept = self._decode.items()
        whole = len(kept) // tokens
        if not whole:
            return np.zeros((0, tokens, self._layers, 1), np.int16)
        return np.stack(kept[len(kept) - whole * tokens :]).reshape(whole, tokens, *kept[0].shape)

    @property
    def sample(self) -> int:
        """How much there is to plan by: decode steps, or a quarter of the tokens of prompts where that is more."""
        prompts = sum(chunk.tokens for chunk in self._prefill.items())
        return max(len(self._decode), min(PROMPTS_MAX, prompts // 4))

    @property
    def calls_a_token(self) -> float:
        """Experts that the latest token called, in all layers."""
        kept = self._decode.items()
        return float((kept[-1] >= 0).sum()) if kept else 0.0

    def trace(self, now: float) -> Trace:
        """The demand as it is now."""
        decode, prefill = self._decode.items(), self._prefill.items()
        steps = no_steps(self._layers)
        if decode:
            experts = np.stack(decode)
            rows = (experts >= 0).astype(np.int32)
            steps = Steps(experts, rows, self._decode.rates(now), np.ones(len(decode), np.int32))
        chunks = self._steps(prefill, self._prefill.rates(now)) if prefill else no_steps(self._layers)
        return Trace(steps, chunks)

    @staticmethod
    def _steps(chunks: list[_Chunk], rates: Floats) -> Steps:
        tokens = np.array([chunk.tokens for chunk in chunks], np.int32)
        experts, rows = np.stack([chunk.experts for chunk in chunks]), np.stack([chunk.rows for chunk in chunks])
        return Steps(experts, rows, rates, tokens)

    def passes(self, rows: int, now: float) -> Steps:
        """Decode tokens in passes of so many that followed each other, `RUN` at most; shares are right, rates are not.

        They followed each other in the order in which the node computed them: with several requests at a time, theirs
        alternate as they do in its passes.
        """
        runs = self._runs.items()
        if not runs:
            return no_steps(self._layers)
        each = RUN // rows
        tokens = np.stack(runs)[:, : each * rows].reshape(len(runs) * each, rows, self._layers, -1)
        # All at once: pass by pass it took the trio thread some 40 ms.
        places = np.arange(len(tokens) * self._layers).reshape(len(tokens), 1, self._layers, 1) * self._experts + tokens
        counts = np.bincount(places[tokens >= 0], minlength=len(tokens) * self._layers * self._experts)
        counts = counts.reshape(len(tokens), self._layers, self._experts)
        used_first = np.argsort(counts == 0, axis=-1, kind="stable")
        called = np.take_along_axis(counts, used_first, axis=-1).astype(np.int32)
        experts = np.where(called > 0, used_first, -1).astype(np.int16)
        lengths = np.full(len(tokens), rows, np.int32)
        return Steps(experts, called, np.repeat(self._runs.rates(now), each), lengths)

    @property
    def has_passes(self) -> bool:
        """Whether there are tokens that followed each other."""
        return len(self._runs) > 0

    def _chunk(self, sets: NDArray[np.int16]) -> _Chunk:
        experts = np.full((self._layers, self._experts), -1, np.int16)
        rows = np.zeros((self._layers, self._experts), np.int32)
        for layer in range(self._layers):
            chosen = sets[:, layer].ravel()
            counts = np.bincount(chosen[chosen >= 0], minlength=self._experts)
            used = np.flatnonzero(counts)
            experts[layer, : len(used)], rows[layer, : len(used)] = used, counts[used]
        return _Chunk(experts, rows, len(sets))


def _shares(counts: Floats) -> Floats:
    shares: Floats = counts / np.maximum(1.0, counts.sum(axis=1, keepdims=True))
    return shares


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
