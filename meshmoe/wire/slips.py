"""Messages that compiled code reads and writes: their fields as a *slip*, a frame of numbers at fixed places.

A decode step's expert call is made, sent, served and answered without the interpreter (`meshmoe.engine.rounds`). So
that it need not know msgpack, such a message has the same header every time, packed once by msgpack, with the key
``s``; what differs stands in the frame behind it, as little-endian int32. To everybody else it is the message that it
stands for: `meshmoe.wire.codec` reads either kind.

    call:  id, layer, budget_ms, dtype, rows, columns, experts; then for each expert: index, n, n rows
    reply: id, compute_us, dtype, rows, columns

The tensor is the frame after the slip. A call as a slip is always one of a decode step.
"""

from __future__ import annotations

import struct
from typing import Any

from meshmoe.core.errors import WireError
from meshmoe.wire.frames import Frame, TensorDtype

SLIP_KEY = "s"
CALL_TAG, REPLY_TAG = "call", "reply"

DTYPES: tuple[TensorDtype, ...] = ("f32", "f16", "bf16")
"""By their number in a slip."""

CALL_NUMBERS, REPLY_NUMBERS = 7, 5
"""At the beginning of each."""

NUMBERS_MAX = 16 << 10


def reply_slip(number: int, dtype: TensorDtype, rows: int, columns: int) -> bytes:
    """The slip of a reply."""
    return struct.pack("<5i", number, 0, DTYPES.index(dtype), rows, columns)


def read_slip(tag: object, data: Frame) -> tuple[dict[str, Any], tuple[TensorDtype, int, int]]:
    """Take a slip apart.

    Args:
        tag: Of the message.
        data: The slip.

    Returns:
        The message's fields but for its tag, and dtype, rows and columns of its tensor; nothing is checked of what
        the message's own type checks.

    Raises:
        WireError: It is none.
    """
    count, rest = divmod(len(data), 4)
    if rest or count > NUMBERS_MAX:
        raise WireError(f"slip of {len(data)} bytes")
    numbers = struct.unpack(f"<{count}i", data)
    if tag == CALL_TAG and count >= CALL_NUMBERS:
        number, layer, budget_ms, dtype, rows, columns, experts = numbers[:CALL_NUMBERS]
        fields = {"id": number, "layer": layer, "budget_ms": budget_ms, "experts": _experts(numbers, experts)}
    elif tag == REPLY_TAG and count == REPLY_NUMBERS:
        number, compute_us, dtype, rows, columns = numbers
        fields = {"id": number, "compute_us": compute_us}
    else:
        raise WireError(f"slip of {count} numbers")
    if not 0 <= dtype < len(DTYPES):
        raise WireError(f"slip with dtype {dtype}")
    return fields, (DTYPES[dtype], rows, columns)


def _experts(numbers: tuple[int, ...], experts: int) -> list[tuple[int, list[int]]]:
    found: list[tuple[int, list[int]]] = []
    at = CALL_NUMBERS
    while at + 2 <= len(numbers) and len(found) < experts:
        index, count = numbers[at : at + 2]
        at += 2
        if not 0 <= count <= len(numbers) - at:
            raise WireError(f"slip with {count} rows where {len(numbers) - at} numbers are left")
        found.append((index, list(numbers[at : at + count])))
        at += count
    if at != len(numbers) or len(found) != experts:
        raise WireError(f"slip of {len(numbers)} numbers that does not have {experts} experts")
    return found
