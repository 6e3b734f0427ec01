"""A lane of the ZeroMQ transport in the hands of a thread that does not run trio.

The thread owns the receiving socket and waits on it; a pipe lets other threads wake it. What it sends goes through the
connections that trio opens and closes; each has a lock, and takes a parcel from here only while nothing waits there.

The lock here is for closing: the transport may close while the thread, left behind, is still about.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
import weakref
from collections.abc import Callable, Sequence
from time import perf_counter

import zmq

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import Parcel
from meshmoe.transport.ledger import Ledger
from meshmoe.transport.precise_timer import open_timer_fd
from meshmoe.transport.zmq_inbound import InboundLane
from meshmoe.transport.zmq_outbound import OutboundLane
from meshmoe.wire.frames import Frame

_BRIEF_S = 0.05
"""Waits shorter than this end on time; polling counts in whole milliseconds."""

_NOBLOCK = int(zmq.NOBLOCK)  # as enum it costs more than receiving

_SKIPPED_MAX = 64
"""Messages that are no parcels, thrown away in one `ZmqDirectLane.receive`."""


class ZmqDirectLane:
    """Implements `meshmoe.transport.base.DirectLane`.

    Attributes:
        ledger: Counters of what went this way; written by the thread, read by anybody.
    """

    def __init__(self, inbound: InboundLane, lane_to: Callable[[NodeId, Lane], OutboundLane], lane: Lane) -> None:
        self.ledger = Ledger()
        self._inbound = inbound
        self._lane_to = lane_to
        self._lane = lane
        self._raw = inbound.hand_over(self.ledger)
        self._descriptor = int(self._raw.get(zmq.FD))
        self._empty = False
        """Whether the last look found no message: then there is none until the descriptor tells of a change."""
        self._closed = False
        self._lock = threading.Lock()
        # Not eventfd, which is Linux's alone.
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._changed = _poll_of(self._descriptor)
        self._waited_for = _poll_of(self._descriptor, self._wake_read)
        self._timer = open_timer_fd()
        if self._timer is not None:
            self._waited_for_briefly = _poll_of(self._descriptor, self._wake_read, self._timer.fileno())
        own = [self._wake_read, self._wake_write, *([self._timer.fileno()] if self._timer is not None else [])]
        weakref.finalize(self, _close_all, own)  # not in `close`: a thread left behind may be about to use them

    def send(self, peer: NodeId, frames: Sequence[Frame]) -> None:
        """See `DirectLane.send`."""
        self._lane_to(peer, self._lane).post_from_outside(frames, self.ledger.of(peer))

    def receive(self) -> Parcel | None:
        """See `DirectLane.receive`."""
        for _ in range(_SKIPPED_MAX):
            with self._lock:
                if self._closed or (self._empty and not self._changed.poll(0)):
                    return None
                try:
                    # One that does not wait looks at all that has come, before it says that there is nothing.
                    routing_id = self._raw.recv(_NOBLOCK)
                except zmq.Again:
                    self._empty = True
                    return None
                self._empty = False
                frames = [self._raw.recv(_NOBLOCK, copy=False)]
                while frames[-1].more:
                    frames.append(self._raw.recv(_NOBLOCK, copy=False))
            parcel = self._inbound.accept(routing_id, frames)
            if parcel is not None:
                return parcel
        return None

    def descriptor(self) -> int | None:
        """See `DirectLane.descriptor`."""
        return self._descriptor if self._empty and not self._closed else None

    def wait(self, timeout_s: float, awake_s: float = 0.0) -> None:
        """See `DirectLane.wait`."""
        if not self._empty and not self._look_whether_empty():
            return
        if awake_s > 0.0:
            if self._look_out(min(awake_s, timeout_s)):
                return
            timeout_s -= awake_s
        if timeout_s <= 0.0:
            return
        waited_for, timeout_ms = self._waited_for, math.ceil(timeout_s * 1000)
        if timeout_s < _BRIEF_S and self._timer is not None:
            self._timer.set_in(timeout_s)  # which also forgets that it has rung
            waited_for, timeout_ms = self._waited_for_briefly, timeout_ms + 1  # the timer is to ring first
        self._woken(waited_for.poll(timeout_ms))

    def _look_whether_empty(self) -> bool:
        with self._lock:
            self._empty = not self._closed and not int(self._raw.get(zmq.EVENTS)) & zmq.POLLIN
        return self._empty

    def _look_out(self, awake_s: float) -> bool:
        """Look until something has come or that time is over; returns whether it has."""
        # Each look lets other threads have the interpreter.
        look, until_s = self._waited_for.poll, perf_counter() + awake_s
        while not (found := look(0)):
            if perf_counter() >= until_s:
                return False
        self._woken(found)
        return True

    def _woken(self, found: Sequence[tuple[int, int]]) -> None:
        for descriptor, _ in found:
            if descriptor == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)

    def wake(self) -> None:
        """See `DirectLane.wake`."""
        with contextlib.suppress(BlockingIOError, OSError):  # full: it wakes up anyway; closed: nobody is there
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Close the socket; called by the transport. A thread that still waits sees no more parcels."""
        with self._lock:
            if self._closed:
                return
            self._closed, self._empty = True, False
            self._raw.close(0)
        self.wake()


def _poll_of(*descriptors: int) -> select.poll:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return poll


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
