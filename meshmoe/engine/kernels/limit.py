"""How long compiled code goes on before its thread looks at what is more urgent.

Coming back from compiled code is not free. The interpreter runs with cold caches, because tens of megabytes of weights
went through them since, and it has to take the interpreter's lock, which another thread may hold. So compiled code
does not come back every so often to ask, but looks at a number in memory between two layers and between two experts:
who wants the thread *cuts* the slice. What cannot cut it, because it has to be asked itself, needs a slice of bounded
length. If it has a descriptor that tells when it is worth asking, compiled code looks at that when such a slice would
end, and goes on for another.

The numbers are read by `meshmoe.engine.kernels.stopping.due`.
"""

from __future__ import annotations

from time import CLOCK_MONOTONIC, clock_gettime_ns

import numpy as np

SLICE_S = 0.001
"""Of a bounded slice."""

SLICE_NS = int(SLICE_S * 1e9)

CUT, UNTIL_NS, WATCHED, TIME = 0, 8, 9, 10
"""Places in the table, int64: whether it is cut, the clock at which it ends (0 for never), what ``poll`` is asked (its
``struct pollfd``; 0 for nothing), two numbers to work with. What other threads write stands in a line of cache of its
own."""

_POLLIN = 1

_NUMBERS = 16


class SliceLimit:
    """A thread's. All is for this thread, but for `cut`.

    Attributes:
        address: Of the table.
        bounded: Whether all slices are to be bounded.
    """

    def __init__(self) -> None:
        self._table = np.zeros(2 * _NUMBERS, np.int64)
        skipped = -self._table.ctypes.data % 64 // 8
        self._numbers = self._table[skipped:]
        self.address = int(self._numbers.ctypes.data)
        self.bounded = False
        self._watched = 0

    def begin(self, bounded: bool = False) -> None:
        """A slice begins; ``bounded`` if this one is to be."""
        until_ns = clock_gettime_ns(CLOCK_MONOTONIC) + SLICE_NS if bounded or self.bounded else 0
        self._numbers[UNTIL_NS] = until_ns
        self._numbers[WATCHED] = 0 if bounded else self._watched

    def watch(self, descriptor: int | None) -> None:
        """Bounded slices need not end while nothing can be read from ``descriptor``; None if they must."""
        # Descriptor and events are int32 and int16, then come the results: little-endian, as all these machines are.
        self._watched = 0 if descriptor is None else descriptor | _POLLIN << 32

    def hurry(self) -> None:
        """Let this slice end in time, whatever may be read."""
        self._numbers[WATCHED] = 0

    def cut(self) -> None:
        """Let compiled code come back soon; on any thread."""
        self._numbers[CUT] = 1

    @property
    def wanted(self) -> bool:
        """Whether it is cut."""
        return bool(self._numbers[CUT])

    def mend(self) -> None:
        """Take `cut` back: the thread is about to look at everything for which it may have been."""
        self._numbers[CUT] = 0
