"""How much of a lane may wait, the same for every transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from meshmoe.core.endpoints import Lane
from meshmoe.wire.frames import FRAMES_MAX, HEADER_BYTES_MAX, PARCEL_BYTES_MAX, Frame
from meshmoe.wire.messages import CHUNK_BYTES


class QueueLimit(NamedTuple):
    """Bounds of the queue towards one peer; whichever is met first counts.

    They bound what a frozen peer can cost. A parcel larger than ``bytes_max`` is taken when the queue is empty, so that
    nothing is unsendable.
    """

    parcels_max: int
    bytes_max: int


class LaneLimits(NamedTuple):
    """Bounds of one lane: the queue towards each peer, and the longest frame."""

    queue: QueueLimit
    frame_bytes_max: int


# A chunk's message, generously.
_CHUNK_HEADER_BYTES = 1024

LANE_LIMITS: Mapping[Lane, LaneLimits] = {
    # Many small messages, none of which may be in the way; a header is the largest thing that travels here.
    Lane.CONTROL: LaneLimits(QueueLimit(512, 4 << 20), 2 * HEADER_BYTES_MAX),
    # 8 KiB a call in decode, a few MiB in prefill; two parcels of the largest size may wait.
    Lane.DATA: LaneLimits(QueueLimit(256, 2 * PARCEL_BYTES_MAX), PARCEL_BYTES_MAX),
    # Chunks of 1 MiB, and only as many as the asker's credit allows.
    Lane.BULK: LaneLimits(QueueLimit(16, 16 * (CHUNK_BYTES + _CHUNK_HEADER_BYTES)), 2 * CHUNK_BYTES),
}


def message_bytes_max(frame_bytes_max: int) -> int:
    """Bytes of a parcel on a lane whose longest frame may have ``frame_bytes_max``: that frame and a header."""
    return frame_bytes_max + HEADER_BYTES_MAX


def checked_size_bytes(frames: Sequence[Frame], frame_bytes_max: int) -> int:
    """Bytes of all frames together, if they make a parcel that every receiver will take.

    Raises:
        ValueError: No frame, too many of them, or too many bytes (a mistake of the caller, not of a peer).
    """
    sizes_bytes = [frame.nbytes if type(frame) is memoryview else len(frame) for frame in frames]
    total_bytes = sum(sizes_bytes)
    if not 1 <= len(sizes_bytes) <= FRAMES_MAX:
        raise ValueError(f"a parcel of {len(sizes_bytes)} frames: 1 to {FRAMES_MAX} are allowed")
    if total_bytes > min(PARCEL_BYTES_MAX, message_bytes_max(frame_bytes_max)) or max(sizes_bytes) > frame_bytes_max:
        raise ValueError(
            f"a parcel of {total_bytes} bytes, its longest frame of {max(sizes_bytes)}:"
            f" at most {PARCEL_BYTES_MAX} and {frame_bytes_max} are allowed"
        )
    return total_bytes
