"""Compact forms of what entries carry: sets of experts, epochs, rates.

A set of expert indices is a bitmap, least significant bit first, trailing zero bytes cut off. Epochs are LEB128
numbers in ascending order of the experts they belong to. A rate is one byte on a logarithmic scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

RATE_UNIT = 1e-4
"""The least rate above zero that a byte tells, in calls a second: one call in three hours."""

RATE_STEPS = 8
"""Steps a factor of two: neighbouring values differ by 9 %, so a quantised rate is off by at most 4.5 %."""


def pack_bitmap(indices: Iterable[int]) -> bytes:
    """The set of ``indices`` as a bitmap."""
    bits = 0
    for index in indices:
        bits |= 1 << index
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def unpack_bitmap(bitmap: bytes) -> Iterator[int]:
    """The indices in a bitmap, ascending."""
    for place, byte in enumerate(bitmap):
        while byte:
            low = byte & -byte
            yield place * 8 + low.bit_length() - 1
            byte ^= low


def pack_numbers(numbers: Iterable[int]) -> bytes:
    """Non-negative numbers as LEB128: seven bits a byte, the eighth says that more follow."""
    out = bytearray()
    for number in numbers:
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)


def unpack_numbers(data: bytes) -> Iterator[int]:
    """The numbers of `pack_numbers`.

    Raises:
        ValueError: The last number is cut off, or one exceeds 63 bits.
    """
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift > 56:
                raise ValueError("number of more than 63 bits")
            continue
        yield number
        number = shift = 0
    if shift:
        raise ValueError("number is cut off")


def pack_rate(rate_per_s: float) -> int:
    """A rate as one byte: 0 below half the unit, else ``1 + RATE_STEPS * log2(rate / RATE_UNIT)`` within 1 .. 255."""
    if rate_per_s < RATE_UNIT / 2:
        return 0
    return max(1, min(255, 1 + round(RATE_STEPS * math.log2(rate_per_s / RATE_UNIT))))


RATES = (0.0, *(RATE_UNIT * 2 ** ((byte - 1) / RATE_STEPS) for byte in range(1, 256)))
"""The rate that each byte stands for, in calls a second; the greatest is 361,000."""
