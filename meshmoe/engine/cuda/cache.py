"""The paged key-value cache of a card: blocks of equal size, each sequence a list of them."""

from __future__ import annotations

import torch
from torch import Tensor

from meshmoe.core.errors import OverloadedError
from meshmoe.engine.cuda.weights import DeviceWeights

BLOCK_TOKENS = 64
"""Positions of a block."""


class PagedCache:
    """Keys and values of all sequences.

    Attributes:
        keys, values: ``[layers, blocks, BLOCK_TOKENS, kv heads, d]``.
    """

    def __init__(self, weights: DeviceWeights, blocks: int) -> None:
        shape = weights.shape
        size = (len(weights.layers), blocks, BLOCK_TOKENS, shape.kv_heads, shape.head_dim)
        self.keys = torch.zeros(size, dtype=weights.dtype, device=weights.device)
        self.values = torch.zeros_like(self.keys)
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    def extend(self, table: list[int], tokens: int) -> None:
        """Lengthen a sequence's table until it has room for ``tokens``.

        Raises:
            OverloadedError: Not enough blocks are free; the table is unchanged.
        """
        lacking = -(-tokens // BLOCK_TOKENS) - len(table)
        if lacking > len(self._free):
            raise OverloadedError(f"the key-value cache has {len(self._free)} blocks free, {lacking} are needed")
        table.extend(self._free.pop() for _ in range(lacking))

    def release(self, table: list[int]) -> None:
        """Take a sequence's blocks back."""
        self._free.extend(table)
        table.clear()


def gathered(cache: Tensor, layer: int, table: list[int], tokens: int) -> Tensor:
    """A sequence's keys or values of a layer as one tensor, ``[tokens, kv heads, d]``."""
    blocks = torch.tensor(table, device=cache.device)
    return cache[layer].index_select(0, blocks).flatten(0, 1)[:tokens]
