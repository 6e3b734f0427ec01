"""How long compiled code goes on before its thread looks at what is more urgent.

Coming back from compiled code is not free. The interpreter runs with cold caches, because tens of megabytes of weights
went through them since, and it has to take the interpreter's lock, which another thread may hold. So compiled code
does not come back every so often to ask, but looks at a number in memory between two layers and between two experts:
who wants the thread *cuts* the slice. What cannot cut it, because it has to be asked itself, needs a slice of bounded
length.

The numbers are read by `meshmoe.engine.kernels.stopping.due`.
"""

from __future__ import annotations

from time import CLOCK_MONOTONIC, clock_gettime_ns

import numpy as np

SLICE_S = 0.001
"""Of a bounded slice."""

CUT, UNTIL_NS, TIME = 0, 8, 9
"""Places in the table, int64: whether it is cut, the clock at which it ends (0 for never), two numbers to work with.
What other threads write stands in a line of cache of its own."""

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

    def begin(self, bounded: bool = False) -> None:
        """A slice begins; ``bounded`` if this one is to be."""
        until_ns = clock_gettime_ns(CLOCK_MONOTONIC) + int(SLICE_S * 1e9) if bounded or self.bounded else 0
        self._numbers[UNTIL_NS] = until_ns

    def cut(self) -> None:
        """Let compiled code come back soon; on any thread."""
        self._numbers[CUT] = 1

    def mend(self) -> None:
        """Take `cut` back: the thread is about to look at everything for which it may have been."""
        self._numbers[CUT] = 0
