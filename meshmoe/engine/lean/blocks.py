"""Keys and values in blocks of 32 tokens, under a byte budget, shared by texts that begin alike.

Theory. A *sequence* is a text that is being read; its keys and values lie in *blocks*, each for `BLOCK_TOKENS` tokens
of all layers, anywhere in one large piece of memory. The compiled step finds them through the sequence's table of
addresses. Blocks are taken when tokens need them and given back one by one, so nothing is copied when a text grows,
and memory is lost to at most one unfilled block a sequence (as Kwon et al. 2023, "PagedAttention").

A full block may be *published* under a digest of its tokens and all before them. Another sequence whose text begins
with the same tokens then shares it instead of reading them again. That is exact, because a row's bits depend on the
tokens before it and on nothing else: neither on how the text was cut into chunks nor on what else was in the batch.

Invariants:

- A block is free, or used by at least one sequence, or kept: published and used by none. Kept blocks are taken, the
  longest unused first, when no free one is left.
- Nobody writes to a published block, or one that others use: who wants to (after `Sequence.truncate`) gets a copy, or
  takes it off the list.
- Memory never exceeds the budget. It is touched only where blocks are used, the most recently used first.

One block: ``[layers, 2, kv_heads, 32, d]`` in the model's dtype, keys before values. Only the compute thread uses this.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence as Tokens

import numpy as np
import torch

from meshmoe.engine.lean.attention import BLOCK_TOKENS


class NoBlocksError(Exception):
    """All blocks are in use."""


class BlockPool:
    """See above.

    Attributes:
        block_bytes: Size of a block.
        capacity: Blocks that the budget has room for.
    """

    def __init__(self, block_bytes: int, capacity_bytes: int, device: torch.device | None = None) -> None:
        self.block_bytes = block_bytes
        self.capacity = capacity_bytes // block_bytes
        # Only reserved: the system gives memory page by page, as it is written to.
        self._memory = torch.empty(self.capacity * block_bytes, dtype=torch.uint8, device=device)
        self._free = list(range(self.capacity - 1, -1, -1))
        self._users = [0] * self.capacity
        self._digests: list[bytes | None] = [None] * self.capacity
        self._published: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def capacity_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.capacity * self.block_bytes

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._free) + len(self._kept)

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks that sequences use."""
        return (self.capacity - self.available) * self.block_bytes

    def address(self, block: int) -> int:
        """Where a block lies."""
        return self._memory.data_ptr() + block * self.block_bytes

    def take(self) -> int:
        """Take a block. Raises `NoBlocksError`."""
        if self._free:
            block = self._free.pop()
        elif self._kept:
            block, _ = self._kept.popitem(last=False)
            self._forget(block)
        else:
            raise NoBlocksError(f"all {self.capacity} key-value blocks are in use")
        self._users[block] = 1
        return block

    def share(self, digest: bytes) -> int | None:
        """Use a published block too; None if there is none of that text."""
        block = self._published.get(digest)
        if block is not None:
            self._users[block] += 1
            self._kept.pop(block, None)
        return block

    def give(self, block: int) -> None:
        """Stop using a block."""
        self._users[block] -= 1
        if self._users[block]:
            return
        if self._digests[block] is None:
            self._free.append(block)
        else:
            self._kept[block] = None

    def publish(self, block: int, digest: bytes) -> None:
        """Let others share a full block that the caller uses; does nothing if such a one is published already."""
        if self._digests[block] is None and digest not in self._published:
            self._digests[block] = digest
            self._published[digest] = block

    def own(self, block: int) -> int:
        """A block with the same content that the caller may write to, in exchange for this one."""
        if self._users[block] == 1:
            if self._digests[block] is not None:
                self._forget(block)
            return block
        copy = self.copy(block)
        self.give(block)
        return copy

    def copy(self, block: int) -> int:
        """Take a block and copy another's content to it. Raises `NoBlocksError`."""
        copy, size = self.take(), self.block_bytes
        self._memory[copy * size : (copy + 1) * size] = self._memory[block * size : (block + 1) * size]
        return copy

    def join(self, block: int) -> None:
        """Use a block too that another sequence uses."""
        self._users[block] += 1

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        assert digest is not None
        self._digests[block] = None
        del self._published[digest]


class Sequence:
    """A text's keys and values. Close it.

    Attributes:
        length: Tokens that have been read.
        long: Whether the text is read with the position frequencies of long texts (see `LeanModel.rotation`).
        table: The int64 addresses of the blocks, for the compiled step.
        table_at: Where the table lies; asking numpy each time takes longer than all else that a row needs.
    """

    def __init__(self, pool: BlockPool, long: bool = False) -> None:
        self.length = 0
        self.long = long
        self.table = np.zeros(8, np.int64)
        self.table_at = int(self.table.ctypes.data)
        self._pool = pool
        self._blocks: list[int] = []

    def reserve(self, tokens: int) -> None:
        """Have room for as many more tokens. Raises `NoBlocksError`, and then has taken none."""
        needed = -(-(self.length + tokens) // BLOCK_TOKENS)
        if needed - len(self._blocks) > self._pool.available:
            raise NoBlocksError(f"{needed - len(self._blocks)} key-value blocks needed, {self._pool.available} left")
        if self.length % BLOCK_TOKENS:
            at = self.length // BLOCK_TOKENS
            self._put(at, self._pool.own(self._blocks[at]))
        while len(self._blocks) < needed:
            self._blocks.append(0)
            self._put(len(self._blocks) - 1, self._pool.take())

    def lacking(self, tokens: int) -> int:
        """How many blocks `reserve` would take."""
        return max(0, -(-(self.length + tokens) // BLOCK_TOKENS) - len(self._blocks))

    def truncate(self, length: int) -> None:
        """Forget all tokens from position ``length`` on."""
        assert 0 <= length <= self.length
        self.length = length
        while len(self._blocks) > -(-length // BLOCK_TOKENS):
            self._pool.give(self._blocks.pop())

    def fork(self) -> Sequence:
        """Another text that has been read as far as this one, and goes on otherwise; close it, too.

        Full blocks are shared, one that is not full is copied. Raises `NoBlocksError`, and then has taken none.
        """
        fork, full = Sequence(self._pool, self.long), self.length // BLOCK_TOKENS
        begun = [self._pool.copy(self._blocks[full])] if self.length % BLOCK_TOKENS else []
        for block in self._blocks[:full]:
            self._pool.join(block)
        for at, block in enumerate(self._blocks[:full] + begun):
            fork._blocks.append(block)
            fork._put(at, block)
        fork.length = self.length
        return fork

    def become(self, fork: Sequence) -> None:
        """Have read what the fork has read; the fork is closed."""
        self.close()
        self.length, self._blocks, self.table, self.table_at = fork.length, fork._blocks, fork.table, fork.table_at
        fork.length, fork._blocks, fork.table = 0, [], np.zeros(8, np.int64)
        fork.table_at = int(fork.table.ctypes.data)

    def close(self) -> None:
        """Give all blocks back."""
        self.truncate(0)

    def share(self, ids: Tokens[int]) -> int:
        """Begin with the published blocks of a text; only for an empty sequence.

        Returns:
            Tokens that need not be read. At least the last is left, because its logits are wanted.
        """
        assert not self._blocks
        for digest in self._digests(ids, (len(ids) - 1) // BLOCK_TOKENS):
            block = self._pool.share(digest)
            if block is None:
                break
            self._blocks.append(block)
            self._put(len(self._blocks) - 1, block)
            self.length += BLOCK_TOKENS
        return self.length

    def publish(self, ids: Tokens[int]) -> None:
        """Publish all full blocks; ``ids`` is what has been read, or more."""
        for block, digest in zip(self._blocks, self._digests(ids, self.length // BLOCK_TOKENS), strict=False):
            self._pool.publish(block, digest)

    def _put(self, at: int, block: int) -> None:
        self._blocks[at] = block
        if at >= len(self.table):
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
            self.table_at = int(self.table.ctypes.data)
        self.table[at] = self._pool.address(block)

    def _digests(self, ids: Tokens[int], count: int) -> list[bytes]:
        digests, last = [], b"long" if self.long else b""
        for at in range(count):
            tokens = np.array(ids[at * BLOCK_TOKENS : (at + 1) * BLOCK_TOKENS], np.int64)
            last = hashlib.blake2b(last + tokens.tobytes(), digest_size=16).digest()
            digests.append(last)
        return digests
