"""The lane of an emulated link in the hands of a thread that does not run trio.

Parcels that find the link idle are kept here until they have arrived, and sent on by the thread itself: when it asks
for parcels, or out of its wait, which ends in time for them. By way of trio a parcel would wake that thread twice, to
take it over and when it is due, and each time the two would fight for the interpreter: with several nodes on one box
the emulation then costs more than what it emulates. While the thread computes, what is due waits for the end of its
slice, as it does on a real box for the thread to come round to sending.

A thread that sleeps until a parcel is due comes round to it some 40 us later, which a real link does not: there the
packet arrives while the sender sleeps. So it wakes up earlier by what it was late before, and spins for what is left.

What has to queue (the link is busy with another lane, held up or blocked) goes by way of trio all the same.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple, Protocol

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import DirectLane, Parcel, QueueFullError, UnreachableError
from meshmoe.wire.frames import Frame

_EARLY_S_MAX = 60e-6
_SPUN_S_AIM = 5e-6
_EARLY_GAIN, _EARLY_STEP_S_MAX = 1 / 8, 40e-6


class EmulatedLinks(Protocol):
    """What this file needs of `meshmoe.transport.impaired.ImpairedTransport`, with its own words."""

    def emulates(self, peer: NodeId) -> bool:
        """Whether there is an emulated link."""
        ...

    def pass_alone(self, peer: NodeId, lane: Lane, frames: Sequence[Frame], now_s: float) -> tuple[float, int] | None:
        """When a parcel that leaves now arrives, and the link's life; None if it has to queue."""
        ...

    def tie(self, peer: NodeId, port: int) -> None:
        """Let a connection's table tell of the emulated link before it, whenever there is one."""
        ...

    def is_life(self, peer: NodeId, life: int) -> bool:
        """Whether what left in that life may arrive."""
        ...

    def deliver(self, peer: NodeId, lane: Lane, frames: Sequence[Frame]) -> None:
        """On the trio thread: send on what has arrived."""
        ...

    def post_sent_at(self, peer: NodeId, lane: Lane, frames: Sequence[Frame], sent_s: float) -> None:
        """On the trio thread: queue what has left at that time."""
        ...


class _UnderWay(NamedTuple):
    """A parcel on a link, ordered by arrival."""

    arrival_s: float
    number: int
    peer: NodeId
    life: int
    frames: list[Frame]


class ImpairedDirectLane:
    """Implements `meshmoe.transport.base.DirectLane`; all but `wake` is for one thread."""

    def __init__(self, links: EmulatedLinks, inner: DirectLane, lane: Lane) -> None:
        self._links = links
        self._lane = lane
        self._inner = inner
        self._token = trio.lowlevel.current_trio_token()
        self._clock = trio.lowlevel.current_clock()
        self._under_way: list[_UnderWay] = []
        self._numbers = count()
        self._early_s = 0.0
        """How long before a parcel is due the thread has itself woken."""
        self._tied: set[int] = set()
        """Tables of connections that tell compiled code of the emulated links before them."""
        # What emulated links have no part in.
        self.wake = inner.wake
        self.native = inner.native
        self.enter = inner.enter
        self.leave = inner.leave
        self.drained = inner.drained
        self.parcel = inner.parcel
        self.refuse = inner.refuse
        self.still = inner.still
        self.heard = inner.heard
        self.sent = inner.sent

    def send(self, peer: NodeId, frames: Sequence[Frame]) -> None:
        """See `DirectLane.send`."""
        links, lane = self._links, self._lane
        if not links.emulates(peer):
            self._inner.send(peer, frames)
            return
        now_s = self._clock.current_time()
        passed = links.pass_alone(peer, lane, frames, now_s)
        # Sealed frames may be views of memory that the sender goes on to use; the emulated link keeps them for a while.
        kept: list[Frame] = [bytes(frame) for frame in frames]
        if passed is not None:
            arrival_s, life = passed
            heappush(self._under_way, _UnderWay(arrival_s, next(self._numbers), peer, life, kept))
            return
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(links.post_sent_at, peer, lane, kept, now_s)

    def receive(self) -> Parcel | None:
        """See `DirectLane.receive`."""
        if self._under_way:
            self.due_s()
        return self._inner.receive()

    def descriptor(self) -> int | None:
        """See `DirectLane.descriptor`."""
        return None if self._under_way else self._inner.descriptor()

    def wait(self, timeout_s: float, awake_s: float = 0.0) -> None:
        """See `DirectLane.wait`."""
        left_s, early_s = self.due_s(), self._early_s
        if left_s - early_s > 0:
            self._inner.wait(min(timeout_s, left_s - early_s), awake_s)
        if not self._under_way:
            return
        due_s = self._under_way[0].arrival_s
        left_s = due_s - self._clock.current_time()
        if left_s <= early_s:  # else it was something else that has woken it
            change_s = max(-_EARLY_STEP_S_MAX, min(_SPUN_S_AIM - left_s, _EARLY_STEP_S_MAX))
            self._early_s = max(0.0, min(early_s + change_s * _EARLY_GAIN, _EARLY_S_MAX))
            while self._clock.current_time() < due_s:
                pass
            self.due_s()

    def port(self, peer: NodeId) -> int:
        """See `DirectLane.port`."""
        port = self._inner.port(peer)
        if not port or (self._lane is not Lane.DATA and self._links.emulates(peer)):
            return 0  # compiled code knows emulated data lanes only
        if port not in self._tied:
            self._links.tie(peer, port)
            self._tied.add(port)
        return port

    def due_s(self) -> float:
        """See `DirectLane.due_s`."""
        under_way = self._under_way
        while under_way:
            left_s = under_way[0].arrival_s - self._clock.current_time()
            if left_s > 0:
                return left_s
            parcel = heappop(under_way)
            if not self._links.is_life(parcel.peer, parcel.life):
                continue
            try:
                self._inner.send(parcel.peer, parcel.frames)
            except UnreachableError:
                continue  # its senders are told by the connection that is lost
            except QueueFullError:
                with contextlib.suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._links.deliver, parcel.peer, self._lane, parcel.frames)
        return math.inf
