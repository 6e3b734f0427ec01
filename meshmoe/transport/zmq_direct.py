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
from typing import Any

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
"""Waits shorter than this end on time; libzmq counts in whole milliseconds."""

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
        self._changed = select.poll()
        self._changed.register(self._descriptor, select.POLLIN)
        self._empty = False
        """Whether the last look found no message: then there is none until the descriptor tells of a change."""
        self._closed = False
        self._lock = threading.Lock()
        # Not eventfd, which is Linux's alone.
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        # Typed as for sockets alone, but descriptors are welcome, too.
        self._waited_for: list[Any] = [(self._raw, zmq.POLLIN), (self._wake_read, zmq.POLLIN)]
        self._timer = open_timer_fd()
        if self._timer is not None:
            self._waited_for_briefly = [*self._waited_for, (self._timer.fileno(), zmq.POLLIN)]
        own = [self._wake_read, self._wake_write, *([self._timer.fileno()] if self._timer is not None else [])]
        weakref.finalize(self, _close_all, own)  # not in `close`: a thread left behind may be about to use them
        self._ready = False
        """Whether `wait` has just seen a message, so that asking again would be for nothing."""

    def send(self, peer: NodeId, frames: Sequence[Frame]) -> None:
        """See `DirectLane.send`."""
        self._lane_to(peer, self._lane).post_from_outside(frames, self.ledger.of(peer))

    def receive(self) -> Parcel | None:
        """See `DirectLane.receive`."""
        for _ in range(_SKIPPED_MAX):
            with self._lock:
                ready, self._ready = self._ready, False
                if self._closed:
                    return None
                if not ready:
                    # With cold caches, libzmq takes 45 us to say what the kernel says in 2.
                    if self._empty and not self._changed.poll(0):
                        return None
                    self._empty = not int(self._raw.get(zmq.EVENTS)) & zmq.POLLIN
                    if self._empty:
                        return None
                self._empty = False
                frames = self._raw.recv_multipart(zmq.NOBLOCK, copy=False)
            parcel = self._inbound.accept(frames)
            if parcel is not None:
                return parcel
        return None

    def descriptor(self) -> int | None:
        """See `DirectLane.descriptor`."""
        # It tells of changes only, but `receive` has looked at all until now before it returned None.
        return None if self._closed or self._ready else self._descriptor

    def wait(self, timeout_s: float) -> None:
        """See `DirectLane.wait`."""
        if self._closed:
            return
        waited_for, timeout_ms = self._waited_for, math.ceil(max(0.0, timeout_s) * 1000)
        if timeout_s < _BRIEF_S and self._timer is not None:
            if timeout_s <= 0.0:
                return
            self._timer.set_in(timeout_s)  # which also forgets that it has rung
            waited_for, timeout_ms = self._waited_for_briefly, timeout_ms + 1  # the timer is to ring first
        # libzmq's own poll looks at the socket before and after it sleeps, which takes care of the edges.
        for ready, _ in zmq.zmq_poll(waited_for, timeout_ms):
            if ready is self._raw:
                self._ready = True
            elif ready == self._wake_read:
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
            self._closed = True
            self._raw.close(0)
        self.wake()


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
