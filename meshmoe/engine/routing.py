"""Who computes what in one layer call: the (token, slot) pairs of a router's choice, grouped by expert.

The one canonical order of this package: experts ascend, and within an expert the pairs go by slot, then by token. It is
the order of transformers' eager forward, which matters to the last bit: some kernels round a row of a matrix product
differently in another place among its neighbours (seen with MKL on an AVX-512 machine, not on an older one). Placement,
load and the other requests have no say in the order, so a token's bits are the same anywhere.
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
        rows: ``[n]`` int64, the tokens routed to it, in canonical order.
    """

    expert: int
    rows: Tensor


class Grouping(NamedTuple):
    """A router's choice, in canonical order.

    Attributes:
        groups: One an expert, ascending.
        weights: ``[P, 1]``, the router's weights of the (token, slot) pairs, group after group, in the router's dtype.
    """

    groups: list[Group]
    weights: Tensor


def group_by_expert(index: Tensor, weights: Tensor) -> Grouping:
    """Group a router's choice.

    Args:
        index: ``[T, k]`` integer, the experts chosen for each token.
        weights: ``[T, k]``, the router's weights.
    """
    tokens, k = index.shape
    if tokens == 1:  # a decode step: half of all calls, and Python is faster than six tensor operations
        chosen = index[0].tolist()
        order = sorted(range(k), key=chosen.__getitem__)
        return Grouping([Group(chosen[slot], _ROW_0) for slot in order], weights[0, order].unsqueeze(1))
    # Slot after slot, so that a stable sort keeps the pairs of an expert in canonical order.
    experts_of_pairs, pairs = torch.sort(index.t().reshape(-1), stable=True)
    experts, counts = torch.unique_consecutive(experts_of_pairs, return_counts=True)
    groups = map(Group, experts.tolist(), torch.split(pairs % tokens, counts.tolist()))
    return Grouping(list(groups), weights.t().reshape(-1)[pairs].unsqueeze(1))


def gather_rows(hidden: Tensor, rows: Tensor) -> Tensor:
    """The rows of ``hidden`` (``[T, H]``) that an expert computes: contiguous and aligned, here as at a peer."""
    return aligned(hidden) if hidden.shape[0] == rows.shape[0] == 1 else hidden.index_select(0, rows)


def aligned(hidden: Tensor) -> Tensor:
    """``hidden`` itself where it is contiguous and aligned, else a copy that is."""
    if hidden.is_contiguous() and hidden.data_ptr() % ALIGNMENT_BYTES == 0:
        return hidden
    return hidden.clone(memory_format=torch.contiguous_format)


def combine(hidden: Tensor, grouping: Grouping, outputs: dict[int, Tensor], dtype: torch.dtype) -> Tensor:
    """Sum the experts' outputs as stock eager does: weighted, rounded to ``dtype``, added in ascending order.

    Args:
        hidden: ``[T, H]``, for shape and dtype of the result.
        grouping: The layer's groups.
        outputs: For each expert, ``[n, H]``: the outputs for its group's rows.
        dtype: What the sums are kept in.

    Returns:
        ``[T, H]`` in the dtype of ``hidden``.
    """
    pairs = torch.cat([outputs[group.expert] for group in grouping.groups])
    weighted = (pairs * grouping.weights).to(dtype)
    total = torch.zeros_like(hidden, dtype=dtype)
    # Expert by expert: one index_add_ of all pairs would round bfloat16 once a token, stock rounds once an expert.
    if hidden.shape[0] == 1:
        for row in weighted.unbind():
            total += row
    else:
        parts = torch.split(weighted, [group.rows.shape[0] for group in grouping.groups])
        for group, part in zip(grouping.groups, parts, strict=True):
            total.index_add_(0, group.rows, part)
    return total.to(hidden.dtype)
