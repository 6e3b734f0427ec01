"""What a parcel is made of: frames, their bounds, and the description of a tensor that one of them carries.

A parcel is a list of frames. The first is the message (a msgpack map); then, if the map has a tensor description, the
tensor's bytes; then whatever payload the message speaks of. This file knows no torch, so that whoever only routes or
counts parcels need not load it.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

Frame = bytes | bytearray | memoryview
"""One contiguous run of bytes. A memoryview has format ``B`` and one dimension, so that its ``len`` is its size."""

HEADER_BYTES_MAX = 256 << 10
"""Bytes of the message frame: rows of a call dominate, 8192 rows x top-8 x 3 bytes an index = 196 KiB."""

FRAMES_MAX = 16
"""Frames of a parcel, message included; today's messages need two."""

PARCEL_BYTES_MAX = (64 << 20) + HEADER_BYTES_MAX
"""All frames of a parcel together: 8192 rows of 4096 bf16 values are 64 MiB; whoever needs more sends several."""

TensorDtype = Literal["f32", "f16", "bf16"]

ITEM_BYTES: dict[TensorDtype, int] = {"f32": 4, "f16": 2, "bf16": 2}


class TensorHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Describes a frame of ``rows x columns`` little-endian values, row by row without gaps."""

    dtype: TensorDtype
    rows: Annotated[int, Meta(ge=1, lt=1 << 20)]
    columns: Annotated[int, Meta(ge=1, lt=1 << 20)]

    @property
    def size_bytes(self) -> int:
        """Exact length of the frame."""
        return self.rows * self.columns * ITEM_BYTES[self.dtype]


class TensorFrame(NamedTuple):
    """A tensor as it travels: see `meshmoe.wire.tensors` for the way from and to torch."""

    header: TensorHeader
    data: Frame
