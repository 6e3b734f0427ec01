"""A lane of the ZeroMQ transport in the hands of a thread that does not run trio.

The thread owns the receiving socket and waits on it; a pipe lets other threads wake it. What it sends goes through the
connections that trio opens and closes; each has a lock, and takes a parcel from here only while nothing waits there.

Compiled code may do the same between `ZmqDirectLane.enter` and `leave`: it calls libzmq on the very sockets.

The lock here is for closing: the transport may close while the thread, left behind, is still about.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import threading
import weakref
from collections.abc import Callable, Sequence
from time import perf_counter

import trio
import zmq

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId
from meshmoe.transport.base import Arrived, Parcel, UnreachableError
from meshmoe.transport.ledger import Ledger
from meshmoe.transport.native import MESSAGE_BYTES, NativeFrame, NativeLane, functions
from meshmoe.transport.precise_timer import open_timer_fd
from meshmoe.transport.zmq_inbound import InboundLane
from meshmoe.transport.zmq_outbound import OutboundLane
from meshmoe.wire.frames import Frame

_logger = logging.getLogger(__name__)

_BRIEF_S = 0.05
"""Waits shorter than this end on time; polling counts in whole milliseconds."""

_NOBLOCK = int(zmq.NOBLOCK)  # as enum it costs more than receiving

_SKIPPED_MAX = 64
"""Messages that are no parcels, thrown away in one `ZmqDirectLane.receive`."""

_LEFT_S_MAX = 10.0
"""How long `ZmqDirectLane.close` waits for compiled code, which takes some milliseconds."""


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

    # -- for compiled code ---------------------------------------------------------------------------------------

    def native(self) -> NativeLane | None:
        """See `DirectLane.native`."""
        found = functions()
        if found is None or self._closed:
            return None
        return NativeLane(found, self._raw.underlying, self._descriptor, self._wake_read)

    def port(self, peer: NodeId) -> int:
        """See `DirectLane.port`."""
        try:
            return self._lane_to(peer, self._lane).port
        except (UnreachableError, trio.ClosedResourceError):
            return 0

    def enter(self) -> bool:
        """See `DirectLane.enter`."""
        self._lock.acquire()
        if self._closed:
            self._lock.release()
            return False
        return True

    def leave(self) -> None:
        """See `DirectLane.leave`."""
        self._lock.release()

    def drained(self, empty: bool) -> None:
        """See `DirectLane.drained`."""
        self._empty = empty and not self._closed

    def parcel(self, messages: int) -> Arrived | None:
        """See `DirectLane.parcel`."""
        with contextlib.closing(NativeFrame(messages)) as first:
            routing_id = bytes(first.buffer)
        with contextlib.closing(NativeFrame(messages + MESSAGE_BYTES)) as content:
            parcel = self._inbound.accept(routing_id, [content])
            return None if parcel is None else Arrived(parcel, routing_id, self._inbound.user_of(content))

    def refuse(self, messages: int) -> None:
        """See `DirectLane.refuse`."""
        with contextlib.closing(NativeFrame(messages)) as first:
            self._inbound.refuse(f"a connection of id {bytes(first.buffer)!r}: not one frame of content")
        NativeFrame(messages + MESSAGE_BYTES).close()

    def still(self, routing_id: bytes, user_id: bytes, node: NodeId) -> bool:
        """See `DirectLane.still`."""
        return self._inbound.still(user_id, node)

    def heard(self, node: NodeId, parcels: int, size_bytes: int) -> None:
        """See `DirectLane.heard`."""
        stats = self.ledger.of(node)
        stats.received_parcels += parcels
        stats.received_bytes += size_bytes

    def sent(self, node: NodeId, parcels: int, size_bytes: int) -> None:
        """See `DirectLane.sent`."""
        stats = self.ledger.of(node)
        stats.sent_parcels += parcels
        stats.sent_bytes += size_bytes

    def due_s(self) -> float:
        """See `DirectLane.due_s`: no links are emulated here."""
        return math.inf

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the socket; called by the transport. A thread that still waits sees no more parcels."""
        if self._closed:
            return
        self._closed, self._empty = True, False
        self.wake()  # compiled code, which holds the lock meanwhile, looks out for this
        left = self._lock.acquire(timeout=_LEFT_S_MAX)
        try:
            if not left:
                _logger.error("compiled code does not leave the %s lane, which is closed now", self._lane.name.lower())
            self._raw.close(0)
        finally:
            if left:
                self._lock.release()
        self.wake()  # whoever has begun to wait since then


def _poll_of(*descriptors: int) -> select.poll:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return poll


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
