"""What is known of a tensor before it is read, and memory to read it into.

The dtype codes are those of the safetensors format. Buffers are fresh and start on a 64-byte boundary: matrix kernels
choose their path by alignment, and an expert's result must not depend on where in a file its weights once stood.

Large buffers are mappings of their own. The C allocator would carve them from its heap once a few were freed, and a
heap that experts come to and go from never shrinks: 300 experts of 3 MB took 1.4 times their size, and gave none of
it back [measured, glibc 2.36]. A mapping costs exactly its pages, and returns them with its last tensor.

Weights are read from one end to the other, and at every page the processor has to look up where the next one lies, and
stops reading ahead. Linux has pages of 2 MiB for whoever asks; we ask for as many as fit into a buffer whole.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from meshmoe.core.errors import CapacityError
from meshmoe.core.units import format_size

ALIGNMENT_BYTES = 64

_MAPPED_BYTES_MIN = 64 << 10
_HUGE_PAGE_BYTES = 2 << 20
_MAP_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Safetensors dtype codes that a checkpoint may use. Packed formats of less than a byte are not among them."""

ITEM_BYTES: dict[str, int] = {code: dtype.itemsize for code, dtype in DTYPES.items()}

DTYPE_CODES: dict[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}


class TensorSpec(NamedTuple):
    """Type and form of one stored tensor.

    Attributes:
        dtype: A key of ``DTYPES``.
        shape: Sizes of the axes, slowest first; empty for a scalar.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the contiguous tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same dtype as torch names it."""
        return DTYPES[self.dtype]


def aligned_buffer(size_bytes: int) -> torch.Tensor:
    """Allocate uninitialised bytes: a ``uint8`` tensor ``[size_bytes]`` on a 64-byte boundary.

    Raises:
        CapacityError: There is not so much memory.
    """
    try:
        if size_bytes < _MAPPED_BYTES_MIN:
            return torch.empty(size_bytes, dtype=torch.uint8)
        if size_bytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # addresses are limited: without
                return _buffer_of_huge_pages(size_bytes)
        return torch.frombuffer(mmap.mmap(-1, size_bytes, flags=_MAP_FLAGS), dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise CapacityError(f"there is no memory for {format_size(size_bytes)} of weights: {error}") from error


def _buffer_of_huge_pages(size_bytes: int) -> torch.Tensor:
    """A mapping that begins on a large page; what is mapped before and behind is never touched, so it costs nothing."""
    mapping = mmap.mmap(-1, size_bytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(mapping, dtype=torch.uint8)
    begin = -whole.data_ptr() % _HUGE_PAGE_BYTES
    with contextlib.suppress(OSError):  # a kernel without them
        # Not of the last, broken part: a large page there would take more memory than the weights do.
        mapping.madvise(mmap.MADV_HUGEPAGE, begin, size_bytes // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES)
    return whole[begin : begin + size_bytes]


def bytes_of(buffer: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor as a writable view, without a copy."""
    array: Any = (
        buffer.reshape(-1).view(torch.uint8).numpy()
    )  # Any: numpy arrays declare the buffer protocol from 3.12 on
    return memoryview(array)


def tensor_of(content: memoryview) -> torch.Tensor:
    """The same bytes as a ``uint8`` tensor of one axis, without a copy."""
    if not content:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8)


def view_as(buffer: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """See ``spec.size_bytes`` bytes (``uint8``, one axis) as the tensor that they encode, without a copy if aligned.

    torch refuses to view bytes at an offset that is not a multiple of the item size; those are copied first.
    """
    if buffer.storage_offset() % spec.torch_dtype.itemsize:
        buffer = buffer.clone()
    return buffer.view(spec.torch_dtype).view(spec.shape)


def aligned_views(specs: Sequence[TensorSpec]) -> list[torch.Tensor]:
    """Allocate several uninitialised tensors side by side, each on a 64-byte boundary, in one fresh buffer."""
    offsets, end_bytes = [], 0
    for spec in specs:
        offsets.append(end_bytes)
        end_bytes += -(-spec.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    buffer = aligned_buffer(end_bytes)
    return [view_as(buffer[at : at + spec.size_bytes], spec) for at, spec in zip(offsets, specs, strict=True)]
