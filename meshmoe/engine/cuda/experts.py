"""Experts on a card for rows on the host: kernel and tiles are those of the node's own forwards, so are the bits.

A peer's call is one launch for all of its experts, and one wait: what the card is to do goes there without waiting.
Where several processes share a card, each wait has the card change from one to another and back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meshmoe.engine.cuda.step import compute_pairs
from meshmoe.engine.cuda.weights import DeviceShape
from meshmoe.model.experts_modules import ExpertWeights

TOGETHER_ROWS_MAX = 256
"""Rows of a call whose experts are computed together: as many as a node reads at once."""

PLACES = (4, 8)
"""Experts that a row may name in one launch; each is a kernel of its own."""


def compute_there(weights: ExpertWeights, x: Tensor) -> Tensor:
    """Compute one expert.

    Args:
        weights: Its tensors, on the card.
        x: ``[n, H]``, on the host.

    Returns:
        ``[n, H]``, on the host.
    """
    device = weights["down_proj"].device
    table, held = _addresses([weights], device), torch.zeros(len(x), 1, dtype=torch.int32, device=device)
    return _compute(weights, table, held, x).cpu()


def compute_together_there(
    held: Sequence[ExpertWeights], rows: Sequence[Sequence[int]], hidden: Tensor
) -> Tensor | None:
    """Compute several experts, each on its own rows, in one go.

    Args:
        held: The experts' tensors, on the card; one at least.
        rows: For each of them, the rows of ``hidden`` that it computes.
        hidden: ``[U, H]``, on the host.

    Returns:
        ``[sum of rows, H]`` on the host, one expert's outputs after the other's; None where rows, or experts for one
        row, are so many that they are better computed one expert after the other.
    """
    count = len(hidden)
    named: list[list[int]] = [[] for _ in range(count)]
    where = []
    for at, numbers in enumerate(rows):
        for row in numbers:
            if not named[row] or named[row][-1] != at:  # a peer may name a row twice
                named[row].append(at)
            where.append((row, len(named[row]) - 1))
    most = max(map(len, named))
    if count > TOGETHER_ROWS_MAX or most > PLACES[-1]:
        return None
    places = next(size for size in PLACES if size >= most)
    device = held[0]["down_proj"].device
    chosen = torch.tensor([experts + [-1] * (places - len(experts)) for experts in named], dtype=torch.int32)
    pairs = torch.tensor([row * places + place for row, place in where])
    table = _addresses(held, device)
    outputs = _compute(held[0], table, chosen.to(device, non_blocking=True), hidden)
    return outputs[pairs.to(device, non_blocking=True)].cpu()


def warm_experts(shape: DeviceShape, dtype: torch.dtype, device: torch.device) -> None:
    """Compile what calls of peers need, so that none of them waits for it."""
    for places in PLACES:
        table = torch.zeros(1, 2, dtype=torch.int64, device=device)
        nothing = torch.full((1, places), -1, dtype=torch.int32, device=device)
        inner = torch.empty(places, shape.width, dtype=dtype, device=device)
        outputs = torch.empty(places, shape.hidden, dtype=dtype, device=device)
        compute_pairs(table, torch.zeros(1, shape.hidden, dtype=dtype, device=device), nothing, inner, outputs)


def _addresses(held: Sequence[ExpertWeights], device: torch.device) -> Tensor:
    """``[experts, 2]``: where their matrices lie."""
    table = torch.tensor([[weights["gate_up_proj"].data_ptr(), weights["down_proj"].data_ptr()] for weights in held])
    return table.to(device, non_blocking=True)


def _compute(like: ExpertWeights, table: Tensor, held: Tensor, x: Tensor) -> Tensor:
    """``[rows * places, H]`` on the card; see `compute_pairs`. What no expert is named for is left as it is."""
    pairs = held.numel()
    inner = torch.empty(pairs, like["down_proj"].shape[1], dtype=x.dtype, device=table.device)
    outputs = torch.empty(pairs, x.shape[1], dtype=x.dtype, device=table.device)
    compute_pairs(table, x.to(table.device, non_blocking=True), held, inner, outputs)
    return outputs
