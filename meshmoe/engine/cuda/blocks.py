"""Keys and values on a card: the same blocks, sharing and tables as on the CPU, with numbers instead of addresses."""

from __future__ import annotations

from torch import Tensor

from meshmoe.engine.cuda.weights import DeviceWeights
from meshmoe.engine.lean.attention import BLOCK_TOKENS
from meshmoe.engine.lean.blocks import BlockPool


class DeviceBlocks(BlockPool):
    """See `BlockPool`. A sequence's table has the numbers of its blocks.

    Attributes:
        stride: Numbers of the model's dtype from one block to the next.
        idle: A block that nobody reads, for rows that only fill up a step.
    """

    def __init__(self, weights: DeviceWeights, capacity_bytes: int) -> None:
        """Take memory on the card: all of it, at once."""
        shape = weights.shape
        self.stride = len(weights.layers) * 2 * shape.kv_heads * BLOCK_TOKENS * shape.head_dim
        super().__init__(self.stride * weights.dtype.itemsize, capacity_bytes, weights.device)
        self._numbers = self._memory.view(weights.dtype)
        self._layer = 2 * shape.kv_heads * BLOCK_TOKENS * shape.head_dim
        self.idle = self.take()

    def address(self, block: int) -> int:
        """A block's number."""
        return block

    def keys(self, layer: int) -> Tensor:
        """A layer's keys in the first block, ``[kv heads, BLOCK_TOKENS, d]``; the next block's are a stride on."""
        return self._numbers[layer * self._layer :]

    def values(self, layer: int) -> Tensor:
        """The same of its values."""
        return self._numbers[layer * self._layer + self._layer // 2 :]
