"""Several threads compute one product, each some of its columns.

The compute thread runs compiled code that goes from product to product within microseconds. Helpers therefore do not
wait for it in the operating system but look for work in a loop of their own, and are parked only when there was none
for a while. All meet in a few numbers of shared memory, the *desk*:

- The ticket says which product is offered and how many pieces of it nobody has taken: ``offer << 32 | left``. A piece
  is taken by lowering it by one, in one atomic step. So the compute thread never waits for a helper that sleeps: what
  nobody else takes, it computes itself, and it waits only for pieces that are being computed.
- What a product consists of is written while the ticket says that nothing is left, so who takes a piece has read the
  product that the piece belongs to: had the desk changed meanwhile, the ticket would have, too.
- The pieces done are counted. When all are, the offer is over, and every helper's results are visible.

A column's bits do not depend on who computes it nor on its neighbours (see `dots`), so they do not depend on the
number of threads. Small products are not offered: handing them over takes longer than computing them.
"""

from __future__ import annotations

import threading
from typing import Self

import numpy as np

from meshmoe.engine.kernels import atomics
from meshmoe.engine.kernels.arithmetic import linear_part
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.linking import linked
from meshmoe.engine.kernels.primitives import Tag, address_at, int64, kind_of

SHARED_MIN = 1 << 16
"""Multiplications of a product from which on it is offered: about 5 us."""

_PIECE_MIN = 1 << 14
"""Multiplications of a piece, at least."""

_PIECES_A_THREAD = 3
"""More than one: a thread that was interrupted then holds the others up less."""

_COLUMNS = 16
"""A piece's width is a multiple of this many: a line of cache of results."""

_LOOKS = 20_000
"""Of a helper that finds nothing, before it is parked: some 0.5 ms."""

_LOOKS_A_YIELD = 2_000
"""Of whoever waits for a piece: perhaps the helper that computes it waits for this very core."""

# The desk: what is written often stands in lines of cache of its own.
_TICKET, _DONE, _OFFERS, _KIND = 0, 16, 32, 33
_W, _BIAS, _X, _Y, _ROWS, _N, _K, _WIDTH, _PIECES, _THREADS = 34, 35, 36, 37, 38, 39, 40, 41, 42, 43
_HELPED = 48
_NUMBERS = 64
_LEFT_MASK = 0xFFFFFFFF

_NOTHING, _MISSED, _COMPUTED = 0, 1, 2


@jit
def linear(tag: Tag, desk: int, w: int, bias: int, x: int, y: int, rows: int, n: int, k: int) -> None:
    """Rows times a transposed matrix, with a bias, rounded to the dtype of the weights.

    Args:
        tag: Dtype of the weights.
        desk: Where a crew works (`Crew.desk`), or 0 to compute alone.
        w: ``[n, k]`` weights.
        bias: ``[n]``, or 0 for none.
        x: ``[rows, k]`` in the same dtype.
        y: ``[rows, n]`` float32; must not overlap ``x``.
        rows: At least 1.
        n: Width of the result.
        k: Width of the input.
    """
    _linear(tag, desk, w, bias, x, y, rows, n, k)


def _linear_itself(tag: Tag, desk: int, w: int, bias: int, x: int, y: int, rows: int, n: int, k: int) -> int:
    if desk == 0 or rows * n * k < SHARED_MIN or address_at(desk, _KIND) != kind_of(tag):
        linear_part(tag, w, bias, x, y, rows, n, k, int64(0), n)
        return 0
    most = min(_PIECES_A_THREAD * address_at(desk, _THREADS), rows * n * k // _PIECE_MIN)
    width = max(1, (n + most * _COLUMNS - 1) // (most * _COLUMNS)) * _COLUMNS
    pieces = (n + width - 1) // width
    atomics.put(desk, _W, w)
    atomics.put(desk, _BIAS, bias)
    atomics.put(desk, _X, x)
    atomics.put(desk, _Y, y)
    atomics.put(desk, _ROWS, rows)
    atomics.put(desk, _N, n)
    atomics.put(desk, _K, k)
    atomics.put(desk, _WIDTH, width)
    atomics.put(desk, _PIECES, pieces)
    atomics.put(desk, _OFFERS, address_at(desk, _OFFERS) + 1)
    atomics.put(desk, _DONE, 0)
    atomics.store(desk, _TICKET, ((atomics.load(desk, _TICKET) >> 32) + 1) << 32 | pieces)
    while _take(tag, desk) != _NOTHING:
        pass
    looks = 0
    while atomics.load(desk, _DONE) < pieces:
        atomics.pause()
        looks += 1
        if looks % _LOOKS_A_YIELD == 0:
            atomics.yield_core()
    return 0


_linear = linked(_linear_itself)


@jit
def help_out(tag: Tag, desk: int) -> None:
    """Compute pieces of whatever is offered, until nothing has been for a while."""
    looks = 0
    while looks < _LOOKS:
        found = _take(tag, desk)
        if found == _COMPUTED:
            atomics.add(desk, _HELPED, 1)
        if found != _NOTHING:
            looks = 0
        else:
            atomics.pause()
            looks += 1


@jit
def _take(tag: Tag, desk: int) -> int:
    """Compute a piece, if there is one."""
    ticket = atomics.load(desk, _TICKET)
    left = ticket & _LEFT_MASK
    if left == 0:
        return _NOTHING
    w, bias, x, y = address_at(desk, _W), address_at(desk, _BIAS), address_at(desk, _X), address_at(desk, _Y)
    rows, n, k = address_at(desk, _ROWS), address_at(desk, _N), address_at(desk, _K)
    width, pieces = address_at(desk, _WIDTH), address_at(desk, _PIECES)
    if not atomics.exchange(desk, _TICKET, ticket, ticket - 1):
        return _MISSED
    first = (pieces - left) * width
    linear_part(tag, w, bias, x, y, rows, n, k, first, min(n, first + width))
    atomics.add(desk, _DONE, 1)
    return _COMPUTED


@jit
def _kind(tag: Tag) -> int:
    return kind_of(tag)


class Crew:
    """Helpers of the thread that enters it, for one dtype, until it leaves it.

    Attributes:
        desk: Its address.
    """

    def __init__(self, tag: Tag, helpers: int) -> None:
        """Make one; ``tag`` is of the dtype whose products are shared."""
        self._tag = tag
        self._numbers = np.zeros(2 * _NUMBERS, np.int64)
        self.desk = (self._numbers.ctypes.data + 8 * _NUMBERS - 1) // (8 * _NUMBERS) * (8 * _NUMBERS)
        self._at = (self.desk - self._numbers.ctypes.data) // 8
        self._numbers[self._at + _KIND] = _kind(tag)
        self._numbers[self._at + _THREADS] = 1 + helpers
        self._offers_seen = 0
        self._stopping = False
        self._parked = [True] * helpers
        self._calls = [threading.Semaphore(0) for _ in range(helpers)]
        self._threads = [
            threading.Thread(target=self._help, args=(number,), name=f"meshmoe-helper-{number}", daemon=True)
            for number in range(helpers)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        _here.crew = self
        return self

    def __exit__(self, *_: object) -> None:
        _here.crew = None
        self._stopping = True
        for call in self._calls:
            call.release()
        for thread in self._threads:  # each looks up from its desk within a millisecond
            thread.join()

    @property
    def offers(self) -> int:
        """Products that were shared so far."""
        return int(self._numbers[self._at + _OFFERS])

    @property
    def helped(self) -> int:
        """Pieces that helpers computed."""
        return int(self._numbers[self._at + _HELPED])

    def rouse(self) -> None:
        """Wake helpers that are parked, if anything was offered since this was called last."""
        offers = self.offers
        if offers == self._offers_seen:
            return
        self._offers_seen = offers
        for number, parked in enumerate(self._parked):
            if parked:
                self._parked[number] = False
                self._calls[number].release()

    def _help(self, number: int) -> None:
        while True:
            self._calls[number].acquire()
            if self._stopping:
                return
            help_out(self._tag, self.desk)
            self._parked[number] = True


class _Here(threading.local):
    crew: Crew | None = None


_here = _Here()


def crew_here() -> Crew | None:
    """The crew of the calling thread."""
    return _here.crew


def desk_here() -> int:
    """Its desk, or 0."""
    return 0 if _here.crew is None else _here.crew.desk
