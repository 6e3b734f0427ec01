"""Tensors as raw frames: no pickle, no copy of large ones on the way out, one copy into aligned memory on the way in.

Out: the frame of a large tensor is a view of its own memory; whoever packs a tensor must not write to it until the
transport has let go of the frame (in practice: never again). Small ones are copied: making a view goes through so much
code that it takes longer. In: a received frame starts wherever the network code put it, and
kernels choose their path by alignment, so a tensor computed on such a view could differ in its last bits from the same
tensor computed elsewhere. Results must be bitwise the same wherever an expert stands; so bytes are always copied into
fresh memory aligned to 64 bytes before anybody computes on them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from meshmoe.core.errors import WireError
from meshmoe.wire.frames import ITEM_BYTES, Frame, TensorDtype, TensorFrame, TensorHeader

ALIGNMENT_BYTES = 64
"""A cache line, and the widest vector register; torch's CPU allocator promises as much (c10::gAlignment)."""

_COPIED_BYTES_MAX = 16 << 10

_DTYPE_OF_CODE: dict[TensorDtype, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_CODE_OF_DTYPE: dict[torch.dtype, TensorDtype] = {dtype: code for code, dtype in _DTYPE_OF_CODE.items()}

if sys.byteorder != "little":
    raise ImportError("meshmoe.wire.tensors: tensors travel little-endian, and this machine is big-endian")


def pack_tensor(tensor: torch.Tensor) -> TensorFrame:
    """Describe a tensor and make its memory a frame, without copying where it is large.

    Args:
        tensor: Two-dimensional, contiguous, on the CPU, of dtype float32, float16 or bfloat16, and not empty.

    Returns:
        The frame, which keeps the tensor's memory alive.

    Raises:
        ValueError: The tensor is not of that kind (a mistake of the caller, not of a peer).
    """
    code = _CODE_OF_DTYPE.get(tensor.dtype)
    plain = tensor.ndim == 2 and tensor.is_contiguous() and tensor.device.type == "cpu" and tensor.numel() > 0
    if code is None or not plain:
        raise ValueError(
            f"cannot send a tensor {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}, strides"
            f" {tensor.stride()}: it must be contiguous, 2-D, on the CPU, not empty, float32, float16 or bfloat16"
        )
    rows, columns = tensor.shape
    if (size_bytes := tensor.nbytes) <= _COPIED_BYTES_MAX:
        return TensorFrame(TensorHeader(code, rows, columns), ctypes.string_at(tensor.data_ptr(), size_bytes))
    # numpy has no bfloat16, but bytes are bytes: every dtype leaves as uint8.
    view = tensor.detach().view(torch.uint8).numpy().data.cast("B")
    return TensorFrame(TensorHeader(code, rows, columns), view)


def unpack_tensor(frame: TensorFrame) -> torch.Tensor:
    """Copy a received tensor into fresh private memory, aligned to `ALIGNMENT_BYTES`.

    Args:
        frame: As `meshmoe.wire.codec` decoded it.

    Raises:
        WireError: The frame's length is not what its header says.
    """
    header, data = frame
    if _size_bytes(data) != header.size_bytes:
        raise WireError(f"tensor frame of {_size_bytes(data)} bytes where {header} needs {header.size_bytes}")
    tensor = torch.empty((header.rows, header.columns), dtype=_DTYPE_OF_CODE[header.dtype])
    assert tensor.data_ptr() % ALIGNMENT_BYTES == 0, "torch's CPU allocator aligns to 64 bytes"
    if header.size_bytes <= _COPIED_BYTES_MAX:
        ctypes.memmove(tensor.data_ptr(), bytes(data), header.size_bytes)
    else:
        tensor.view(torch.uint8).numpy().data.cast("B")[:] = data
    return tensor


def pack_rows(dtype: torch.dtype, rows: int, data: bytes) -> TensorFrame:
    """Describe rows that are bytes already: ``rows`` of them, all of one width."""
    code = _CODE_OF_DTYPE[dtype]
    return TensorFrame(TensorHeader(code, rows, len(data) // (rows * ITEM_BYTES[code])), data)


class RowsInMemory(NamedTuple):
    """A tensor ``[rows, columns]`` by its address: asking torch for each of these takes longer than copying few rows.

    Whoever makes one keeps the tensor alive, and where it is.
    """

    code: TensorDtype
    columns: int
    address: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> RowsInMemory:
        """Of a tensor as `pack_tensor` takes it."""
        assert tensor.ndim == 2 and tensor.is_contiguous() and tensor.device.type == "cpu"
        return cls(_CODE_OF_DTYPE[tensor.dtype], tensor.shape[1], tensor.data_ptr())

    @property
    def moved_bytes(self) -> int:
        """Of a row that goes out and comes back."""
        return 2 * self.columns * ITEM_BYTES[self.code]

    def frame(self, rows: Sequence[int]) -> TensorFrame:
        """A copy of these rows, ascending, as it travels."""
        code, columns, address = self
        size_bytes, count = columns * ITEM_BYTES[code], len(rows)
        first = rows[0]
        if rows[-1] - first == count - 1:  # one after the other
            return TensorFrame(
                TensorHeader(code, count, columns), ctypes.string_at(address + first * size_bytes, count * size_bytes)
            )
        parts = [ctypes.string_at(address + row * size_bytes, size_bytes) for row in rows]
        return TensorFrame(TensorHeader(code, count, columns), b"".join(parts))


def code_of(dtype: torch.dtype) -> TensorDtype:
    """How frames call a dtype."""
    return _CODE_OF_DTYPE[dtype]


def is_of(header: TensorHeader, dtype: torch.dtype) -> bool:
    """Whether a frame that is so described has values of ``dtype``."""
    return _DTYPE_OF_CODE[header.dtype] is dtype


def _size_bytes(data: Frame) -> int:
    return data.nbytes if isinstance(data, memoryview) else len(data)
