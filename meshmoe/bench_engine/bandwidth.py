"""How fast one thread reads memory: what every kernel of few rows is measured against."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

from meshmoe.engine.kernels.apart import ROWS_EACH, STREAMS, dots_apart
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.dots import dots_1x1
from meshmoe.engine.kernels.primitives import F32_TAG
from meshmoe.model.tensors import aligned_buffer

READ_BYTES = 256 << 20


@jit
def _read_all(address: int, ones: int, block: int, blocks: int, out: int) -> None:
    # One sum a block: as little to do for what is read as there can be.
    for i in range(blocks):
        dots_1x1(F32_TAG, address + 4 * i * block, 0, ones, 0, out, 0, 0, block)


@jit
def _read_apart(address: int, ones: int, block: int, apart: int, out: int) -> None:
    for i in range(0, apart, ROWS_EACH):
        dots_apart(F32_TAG, address + 4 * i * block, ones, out + 4 * i, apart, block)


def readers(size_bytes: int = READ_BYTES) -> dict[str, Callable[[], float]]:
    """Ways to read ``size_bytes`` of memory with one thread; each call measures once, in bytes a second.

    The fastest of them is what is called read bandwidth here.
    """
    memory = aligned_buffer(size_bytes).view(torch.float32).fill_(1)
    block = 4096
    blocks = memory.numel() // block
    ones, out = torch.ones(block), torch.zeros(blocks)
    apart = blocks // (STREAMS * ROWS_EACH) * ROWS_EACH
    whole = memory.view(-1, 1 << 16)

    def compiled() -> float:
        began = perf_counter()
        _read_all(memory.data_ptr(), ones.data_ptr(), block, blocks, out.data_ptr())
        return memory.nbytes / (perf_counter() - began)

    def in_places() -> float:
        began = perf_counter()
        _read_apart(memory.data_ptr(), ones.data_ptr(), block, apart, out.data_ptr())
        return 4 * STREAMS * apart * block / (perf_counter() - began)

    def by_torch() -> float:
        began = perf_counter()
        whole.sum(1)
        return memory.nbytes / (perf_counter() - began)

    return {"read, compiled": compiled, "read, in places": in_places, "read, torch": by_torch}
