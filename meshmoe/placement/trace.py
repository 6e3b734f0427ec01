"""What a node's own requests were routed to: the sample on which a placement is judged.

Counts an expert cannot say whether a layer waits, because it waits if *any* of its experts is away. So a trace keeps
whole routing sets, with a weight each: how many such steps come a second. Decode and prefill are apart, since decode
pays rounds and prefill pays bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Steps:
    """Forward steps of one kind.

    Attributes:
        experts: ``[steps, layers, slots]``, the expert called by each slot; -1 where a slot is not used.
        rows: The same shape: rows sent through that expert (1 in decode).
        rates: ``[steps]``, how often such a step comes, a second.
        tokens: ``[steps]``, tokens of each step.
    """

    experts: NDArray[np.int16]
    rows: NDArray[np.int32]
    rates: Floats
    tokens: NDArray[np.int32]

    def __len__(self) -> int:
        """Steps in the sample."""
        return len(self.rates)

    def take(self, index: NDArray[np.intp] | slice) -> Steps:
        """Some of the steps."""
        return Steps(self.experts[index], self.rows[index], self.rates[index], self.tokens[index])

    def scaled(self, factor: float) -> Steps:
        """All rates times a factor."""
        return replace(self, rates=self.rates * factor)

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second."""
        return float(self.rates @ self.tokens)


@dataclass(frozen=True, slots=True)
class Trace:
    """A node's demand.

    Attributes:
        decode: One token a step.
        prefill: A prompt's chunk a step; each slot is a distinct expert of the chunk.
    """

    decode: Steps
    prefill: Steps

    @property
    def steps_per_s(self) -> float:
        """Steps of both kinds a second."""
        return float(self.decode.rates.sum() + self.prefill.rates.sum())

    def demand(self, experts: int) -> Floats:
        """Calls to each expert: ``[layers, experts]`` rows a second, of both kinds together."""
        total = np.zeros((self.decode.experts.shape[1], experts))
        for steps in (self.decode, self.prefill):
            for layer in range(total.shape[0]):
                slots, weights = steps.experts[:, layer], steps.rows[:, layer] * steps.rates[:, None]
                used = slots >= 0
                total[layer] += np.bincount(slots[used], weights[used], experts)
        return total


def decode_steps(experts: NDArray[np.integer], tokens_per_s: float) -> Steps:
    """Decode steps from recorded routing.

    Args:
        experts: ``[tokens, layers, top_k]``.
        tokens_per_s: At which the node decodes; spread evenly over the tokens.
    """
    count = len(experts)
    rates = np.full(count, tokens_per_s / max(1, count))
    return Steps(experts.astype(np.int16), np.ones(experts.shape, np.int32), rates, np.ones(count, np.int32))


def prefill_steps(chunks: Sequence[NDArray[np.integer]], chunks_per_s: float, experts: int) -> Steps:
    """Prefill steps from recorded routing.

    Args:
        chunks: For each chunk ``[tokens, layers, top_k]``; all have the same layers.
        chunks_per_s: Spread evenly over the chunks.
        experts: Experts in a layer.

    Returns:
        One step a chunk, whose slots are the distinct experts that the chunk calls.
    """
    if not chunks:
        raise ValueError("no chunks: take `no_steps` instead")
    layers = chunks[0].shape[1]
    slots = np.full((len(chunks), layers, experts), -1, np.int16)
    rows = np.zeros((len(chunks), layers, experts), np.int32)
    for number, chunk in enumerate(chunks):
        for layer in range(layers):
            counts = np.bincount(chunk[:, layer].ravel(), minlength=experts)
            used = np.flatnonzero(counts)
            slots[number, layer, : len(used)] = used
            rows[number, layer, : len(used)] = counts[used]
    tokens = np.array([len(chunk) for chunk in chunks], np.int32)
    return Steps(slots, rows, np.full(len(chunks), chunks_per_s / len(chunks)), tokens)


def no_steps(layers: int) -> Steps:
    """An empty sample."""
    return Steps(
        np.zeros((0, layers, 1), np.int16), np.zeros((0, layers, 1), np.int32), np.zeros(0), np.zeros(0, np.int32)
    )
