"""Who computes what in one layer call: the (token, slot) pairs of a router's choice, grouped by expert.

The one canonical order of this package: experts ascend, and within an expert the rows ascend. Placement, load and the
other requests have no say in it, and floating-point sums follow it, so a token's bits are the same anywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT_BYTES = 64
"""Kernels choose their path by alignment, so inputs start on this boundary on every node (torch allocates so)."""

_ROW_0 = torch.zeros(1, dtype=torch.int64)


class Group(NamedTuple):
    """What one expert has to do in a layer call.

    Attributes:
        expert: Its index in the layer.
        rows: ``[n]`` int64, the tokens routed to it, ascending.
        weights: ``[n, 1]``, the router's weights for them, in the router's dtype.
    """

    expert: int
    rows: Tensor
    weights: Tensor


def group_by_expert(index: Tensor, weights: Tensor) -> list[Group]:
    """Group a router's choice.

    Args:
        index: ``[T, k]`` integer, the experts chosen for each token.
        weights: ``[T, k]``, the router's weights.

    Returns:
        One group an expert, ascending.
    """
    tokens, k = index.shape
    if tokens == 1:  # a decode step: half of all calls, and Python is faster than six tensor operations
        chosen = index[0].tolist()
        order = sorted(range(k), key=chosen.__getitem__)
        return [Group(chosen[slot], _ROW_0, weights[:, slot : slot + 1]) for slot in order]
    # A stable sort of the flat choice keeps the rows of an expert ascending.
    experts_of_pairs, pairs = torch.sort(index.reshape(-1), stable=True)
    experts, counts = torch.unique_consecutive(experts_of_pairs, return_counts=True)
    sizes = counts.tolist()
    rows = torch.split(pairs // k, sizes)
    weights_of_pairs = torch.split(weights.reshape(-1)[pairs].unsqueeze(1), sizes)
    return [Group(*parts) for parts in zip(experts.tolist(), rows, weights_of_pairs, strict=True)]


def gather_rows(hidden: Tensor, rows: Tensor) -> Tensor:
    """The rows of ``hidden`` (``[T, H]``) that an expert computes: contiguous and aligned, here as at a peer."""
    return aligned(hidden) if len(hidden) == len(rows) == 1 else hidden.index_select(0, rows)


def aligned(hidden: Tensor) -> Tensor:
    """``hidden`` itself where it is contiguous and aligned, else a copy that is."""
    if hidden.is_contiguous() and hidden.data_ptr() % ALIGNMENT_BYTES == 0:
        return hidden
    return hidden.clone(memory_format=torch.contiguous_format)


def combine(hidden: Tensor, groups: list[Group], outputs: dict[int, Tensor], dtype: torch.dtype) -> Tensor:
    """Sum the experts' outputs as stock eager does: weighted, rounded to ``dtype``, added in ascending order.

    Args:
        hidden: ``[T, H]``, for shape and dtype of the result.
        groups: The layer's groups, ascending.
        outputs: For each expert, ``[n, H]``: the outputs for its group's rows.
        dtype: What the sums are kept in.

    Returns:
        ``[T, H]`` in the dtype of ``hidden``.
    """
    total = torch.zeros_like(hidden, dtype=dtype)
    for group in groups:
        weighted = (outputs[group.expert] * group.weights).to(dtype)
        if len(hidden) == 1:
            total += weighted
        else:
            total.index_add_(0, group.rows, weighted)
    return total.to(hidden.dtype)
