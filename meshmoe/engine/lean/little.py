"""Expert calls of few rows with little around them: one compiled call serves a peer, another takes in what came back.

A call of a decode step computes for some 20 us. Through general code it took 200 at the peer and 100 at the asker, most
of them because code that runs once in two milliseconds is not in the nearest caches any more: a short way through few
functions counts for more than what the functions do. So nothing here makes a tensor. Calls of one layer that have come
together are computed together: then the weights of an expert that several ask for are read once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meshmoe.engine.dispatch import TOGETHER_BYTES_MAX, TOGETHER_ROWS_MAX
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.crew import desk_here
from meshmoe.engine.kernels.expert import expert_rows
from meshmoe.engine.kernels.primitives import F32_TAG, Tag, read, size_of, write
from meshmoe.engine.lean.attention import Ints
from meshmoe.engine.lean.plan import LeanPlan
from meshmoe.engine.lean.resident import ResidentTable
from meshmoe.engine.lean.tables import Layer, Shape
from meshmoe.engine.remote import LittleCall
from meshmoe.wire.frames import Frame

ROWS_MAX = 64
"""Of any little call. One of so many takes no longer than one of `TOGETHER_ROWS_MAX` with the largest experts: those
that have fewer weights may have more rows (`LittleCalls.rows_max`)."""


@jit
def serve_rows(
    tag: Tag,
    desk: int,
    experts: Ints,
    asked: Ints,
    count: int,
    x: int,
    y: int,
    scratch: int,
    hidden: int,
    width: int,
) -> int:
    """Compute several experts, each on its rows. One that is asked for several times reads its weights once.

    Args:
        tag: Dtype of the model.
        desk: See `kernels.crew.linear`.
        experts: ``[experts, 2]``: addresses of gate-and-up and down projection, 0 for what is not resident.
        asked: For each expert its index, how many rows it computes, and these; the indices are overwritten.
        count: Rows of ``x``.
        x: ``[count, hidden]`` in the dtype of the model.
        y: Gets the outputs one after the other, in the same dtype.
        scratch: Room for ``ROWS_MAX * (2 * hidden + 3 * width)`` float32.
        hidden: Width of the hidden state.
        width: Of an expert.

    Returns:
        Rows of output, or -1 if an expert is not resident, or an index or row is none.
    """
    wide, done, at = hidden * size_of(tag), 0, 0
    while at < len(asked):
        expert, wanted = asked[at], asked[at + 1]
        if expert < 0 or expert >= len(experts) or experts[expert, 0] == 0:
            return -1
        for m in range(wanted):
            if asked[at + 2 + m] < 0 or asked[at + 2 + m] >= count:
                return -1
        at += 2 + wanted
    at = 0
    computed = scratch + 4 * ROWS_MAX * hidden
    inner = computed + 4 * ROWS_MAX * hidden
    while at < len(asked):
        expert, wanted = asked[at], asked[at + 1]
        if expert >= 0:
            rows, together, other = x + asked[at + 2] * wide, 0, at
            while other < len(asked):
                if asked[other] == expert:
                    together += asked[other + 1]
                other += 2 + asked[other + 1]
            if together > 1:
                rows, m, other = scratch, 0, at
                while other < len(asked):
                    if asked[other] == expert:
                        for i in range(asked[other + 1]):
                            for n in range(hidden):
                                write(tag, scratch, m * hidden + n, read(tag, x, asked[other + 2 + i] * hidden + n))
                            m += 1
                    other += 2 + asked[other + 1]
            expert_rows(
                tag, desk, experts[expert, 0], experts[expert, 1], rows, computed, inner, together, hidden, width
            )
            m, to, other = 0, done, at
            while other < len(asked):
                if asked[other] == expert:
                    for i in range(asked[other + 1] * hidden):
                        write(tag, y, to * hidden + i, read(F32_TAG, computed, m * hidden + i))
                    m += asked[other + 1]
                    asked[other] = -1
                to += asked[other + 1]
                other += 2 + asked[other + 1]
        done += wanted
        at += 2 + wanted
    return done


@jit
def spread(tag: Tag, moves: Ints, hidden: int) -> bool:
    """Widen rows to float32 where they belong.

    Args:
        tag: Their dtype.
        moves: Address of a row, address of its place; and so on.
        hidden: Width of a row.

    Returns:
        Whether all of it was finite.
    """
    bad = 0
    for at in range(0, len(moves), 2):
        for n in range(hidden):
            number = read(tag, moves[at], n)
            bad += number - number != 0
            write(F32_TAG, moves[at + 1], n, number)
    return bad == 0


class LittleCalls:
    """Serves peers' calls of few rows, and takes in the answers to own ones; for the compute thread alone.

    Attributes:
        layers: By ordinal: width of an expert, how many experts a call may ask for, and for how many rows.
        addresses: Of the working memory: input, output, room.
    """

    def __init__(self, plan: LeanPlan, resident: ResidentTable) -> None:
        """Serve with ``resident`` experts of the model that ``plan`` describes."""
        self._plan = plan
        self._resident = resident
        self._hidden, size = int(plan.shape[Shape.HIDDEN]), plan.embedding.element_size()
        self._row_bytes = self._hidden * size
        moe = plan.layers[plan.layers[:, Layer.MOE] >= 0]
        self.layers: dict[int, tuple[int, int, int]] = {}
        for ordinal, width in moe[:, [Layer.MOE, Layer.WIDTH]].tolist():
            most = TOGETHER_BYTES_MAX // (3 * self._hidden * width * size)
            self.layers[ordinal] = width, most, self.rows_max(most)
        widest = max((width for width, *_ in self.layers.values()), default=0)
        room = ROWS_MAX * self._row_bytes
        self._x, self._y = np.zeros(room, np.uint8), np.zeros(room, np.uint8)
        self._scratch = np.zeros(ROWS_MAX * (2 * self._hidden + 3 * widest), np.float32)
        self.addresses = tuple(array.ctypes.data for array in (self._x, self._y, self._scratch))
        self._in, self._out = self._x.data, self._y.data

    @staticmethod
    def rows_max(experts: int) -> int:
        """How many rows a call may have, where `TOGETHER_BYTES_MAX` are ``experts`` experts."""
        return min(ROWS_MAX, TOGETHER_ROWS_MAX * max(1, experts))

    def take(self, data: Frame, places: Sequence[int]) -> bool:
        """Widen rows to float32.

        Args:
            data: Rows in the model's dtype.
            places: For each of them the address of its place.

        Returns:
            Whether it was done: False if there are too many, or another number of rows, or some are not finite.
        """
        size, first = self._row_bytes, self.addresses[0]
        if len(places) > ROWS_MAX or len(data) != len(places) * size:
            return False
        self._in[: len(data)] = data
        moves = [number for at, place in enumerate(places) for number in (first + at * size, place)]
        return spread(self._plan.tag, np.array(moves, np.int64), self._hidden)

    def serve(self, layer: int, call: LittleCall) -> bytes | None:
        """Compute a call, if it is a little one.

        Returns:
            The outputs, one after the other; None if the call is not little, not valid, or for experts that are not
            resident.
        """
        known = self.layers.get(layer)
        experts, count, data = call
        if known is None or not 0 < count <= known[2] or len(data) != count * self._row_bytes:
            return None
        width, most, rows_max = known
        if not 0 < len(experts) <= most:
            return None
        asked: list[int] = []
        for index, rows in experts:
            asked += (index, len(rows), *rows) if rows else (index, count, *range(count))
        if len(asked) - 2 * len(experts) > rows_max:
            return None
        self._in[: len(data)] = data
        done = self._compute(layer, asked, count, width)
        return bytes(self._out[: done * self._row_bytes]) if done > 0 else None

    def serve_together(self, layer: int, calls: Sequence[LittleCall]) -> list[bytes | None]:
        """Compute several calls of one layer: as one, if together they are still little, else one after the other.

        Returns:
            For each of them what `serve` would have returned.
        """
        return self._joined(layer, calls) or [self.serve(layer, call) for call in calls]

    def _joined(self, layer: int, calls: Sequence[LittleCall]) -> list[bytes | None] | None:
        """The answers of all calls, computed as one; None if they make no little call."""
        if (known := self.layers.get(layer)) is None:
            return None
        width, most, rows_max = known
        asked: list[int] = []
        ends: list[int] = []
        total = experts = outputs = 0
        for call in calls:
            if call.rows < 1 or len(call.data) != call.rows * self._row_bytes or not call.experts:
                return None
            for index, rows in call.experts:
                numbers = rows or range(call.rows)
                if min(numbers) < 0 or max(numbers) >= call.rows:  # it would be a row of another call
                    return None
                asked += (index, len(numbers), *(total + number for number in numbers))
                outputs += len(numbers)
            experts += len(call.experts)
            total += call.rows
            ends.append(outputs * self._row_bytes)
        if total > ROWS_MAX or experts > most or outputs > rows_max:
            return None
        begin = 0
        for call in calls:
            self._in[begin : begin + len(call.data)] = call.data
            begin += len(call.data)
        if self._compute(layer, asked, total, width) < 0:
            return None
        return [bytes(self._out[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]

    def _compute(self, layer: int, asked: list[int], count: int, width: int) -> int:
        """Compute what is asked of the rows that have been put into place; returns rows of output, or -1."""
        try:
            wanted = np.array(asked, np.int64)
        except OverflowError:  # not a number of anything
            return -1
        snapshot = self._resident.snapshot()
        x, y, scratch = self.addresses
        return serve_rows(
            self._plan.tag,
            desk_here(),
            snapshot.addresses[layer],
            wanted,
            count,
            x,
            y,
            scratch,
            self._hidden,
            width,
        )
