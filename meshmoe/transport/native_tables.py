"""Tables that compiled code reads and writes beside us: numbers of eight bytes at a fixed address.

Compiled code holds no interpreter lock, so whoever changes a table says under which lock, or that the change may be
seen late. The enumerations give each number's place; the compiled side is written against them.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

_LINE_BYTES = 64
_WORD_BYTES = 8


class Port(IntEnum):
    """One outgoing connection, at the same address whenever its peer comes back (`meshmoe.transport.ports`).

    Attributes:
        MUTEX: A pthread mutex, in 16 words; whoever holds it has the connection to itself.
        OPEN: 1 while a message may go straight to libzmq: the socket is open and nothing waits before it. Changed
            under the mutex.
        SOCKET: libzmq's ``void*``; 0 when it is closed. Changed under the mutex.
        LINK: Address of the `Link` of an emulated link; 0 for none.
        SENT_PARCELS: Counted up by compiled code only.
        SENT_BYTES: Counted up by compiled code only.
    """

    MUTEX = 0
    OPEN = 16
    SOCKET = 17
    LINK = 18
    SENT_PARCELS = 19
    SENT_BYTES = 20


PORT_WORDS = 32


class Link(IntEnum):
    """The data lane of an emulated link (`meshmoe.transport.link_model`); times of the monotonic clock, in seconds.

    Two threads that write at the same moment may undo each other's change: one parcel then leaves a little too early.

    Attributes:
        OPEN: 1 while a parcel may pass alone, unless the link is busy.
        LIFE: How often the lane has been forgotten; what left in an earlier life is dropped.
        DELAY_S: Half of the round trip (float64, as all that follow but the last).
        JITTER_S: Up to so much more.
        RATE: Bytes a second; may be infinite.
        SETTLED_S: When the link is free.
        LAST_S: When the lane's last parcel arrives.
        DROPPED: Parcels of an earlier life, counted up by compiled code only.
    """

    OPEN = 0
    LIFE = 1
    DELAY_S = 2
    JITTER_S = 3
    RATE = 4
    SETTLED_S = 5
    LAST_S = 6
    DROPPED = 7


LINK_WORDS = 8


def write_word(address: int, at: int, value: int) -> None:
    """Set a number of somebody else's table."""
    ctypes.c_int64.from_address(address + _WORD_BYTES * at).value = value


class Table:
    """Zeros to begin with; they stay where they are for as long as this object lives.

    Attributes:
        address: Of the first, a multiple of 64.
        words: The numbers as int64.
        reals: The same memory as float64.
    """

    def __init__(self, count: int) -> None:
        size_bytes = count * _WORD_BYTES
        self._memory = (ctypes.c_char * (size_bytes + _LINE_BYTES))()
        start = ctypes.addressof(self._memory)
        skipped_bytes = -start % _LINE_BYTES
        view = memoryview(self._memory).cast("B")[skipped_bytes : skipped_bytes + size_bytes]
        self.address = start + skipped_bytes
        self.words: memoryview[int] = view.cast("q")
        self.reals: memoryview[float] = view.cast("d")
