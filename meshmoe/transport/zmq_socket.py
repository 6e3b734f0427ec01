"""One ZeroMQ socket on trio.

pyzmq has no trio backend, so this file waits on the socket's file descriptor itself. What makes that hard:

- The descriptor is *edge-triggered*. It becomes readable when libzmq's I/O thread posts a command to the socket, and
  any call into the socket (send, recv, reading EVENTS) may consume that signal. Nobody may therefore wait on the
  descriptor without having read EVENTS since the last call, and a call made while another task waits must read EVENTS
  on its behalf and wake it. Readable means "look again", never "there is a message": to wait for room to *send* one
  waits for the descriptor to become readable, too.
- A send that fails with EAGAIN may not have looked at its mailbox (libzmq throttles that to once in about a
  millisecond); reading EVENTS always does.
- A message of several frames goes out frame by frame. If the connection dies between two of them, libzmq either takes
  the rest and throws it away, or answers EAGAIN in the middle and from then on throws away everything up to the next
  last frame. In the second case the started message must be finished before it can be sent anew, or the new attempt
  itself would be what is thrown away.

Cancellation: `recv` takes a message and returns it without a checkpoint in between, and `send` does the same the other
way round, so a cancelled call has had no effect. Each socket is used in one direction by one task at a time; a second
one gets `trio.BusyResourceError`. `send_nowait` may be called at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
import zmq

from meshmoe.transport.turns import Turns
from meshmoe.wire.frames import Frame

ZERO_COPY_BYTES_MIN = 64 << 10
"""From this size on a frame is sent without copying it; below, telling Python that it was sent costs more."""


class ZmqSocket:
    """Wraps and owns a ``zmq.Socket``. Belongs to the trio thread."""

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self._raw = raw
        self._fd = self._option(zmq.FD)
        self._closed = False
        self._busy = False
        self._turns = Turns()
        self._parked: trio.CancelScope | None = None
        self._parked_for = 0

    def send_nowait(self, frames: Sequence[Frame]) -> bool:
        """Send one message if the socket takes it now.

        Frames of `ZERO_COPY_BYTES_MIN` and more are kept alive, and must not be written to, until they are sent.

        Returns:
            Whether it was taken; if not, nothing of it was.
        """
        if self._closed:
            raise trio.ClosedResourceError("this ZeroMQ socket is closed")
        taken = self._try_send(frames)
        self._wake_parked()
        return taken

    def send_unwatched(self, frames: Sequence[Frame]) -> bool:
        """`send_nowait` on another thread, while no task waits for the socket; the caller keeps other callers out."""
        return self._try_send(frames)

    async def send(self, frames: Sequence[Frame]) -> None:
        """Send one message, waiting until the socket takes it."""
        await self._turns.take()
        self._claim()
        try:
            while not self.send_nowait(frames):
                await self._wait_for(zmq.POLLOUT)
        finally:
            self._busy = False

    async def recv(self) -> list[zmq.Frame]:
        """Wait for the next message; its frames own their memory."""
        await self._turns.take()
        self._claim()
        try:
            while True:
                await self._wait_for(zmq.POLLIN)
                frames = self._try_recv()
                if frames is not None:
                    return frames
        finally:
            self._busy = False

    def hand_over(self) -> zmq.Socket[bytes]:
        """Give the socket to another thread for good; nobody may be waiting in `send` or `recv`, or come later.

        That thread closes it: `close` here only forgets it.
        """
        assert not self._busy, "a task waits for this socket"
        self._closed = True
        return self._raw

    def stop_monitoring(self) -> None:
        """Tell no more events of this socket. Must come before whoever listens to them is closed.

        libzmq's I/O thread waits until an event is taken, so the first one that nobody can take stops all sockets of
        the context for good.
        """
        if not self._closed:
            self._raw.monitor(None, 0)

    def close(self, *, linger_ms: int = 0) -> None:
        """Close at once; a waiting task gets `trio.ClosedResourceError`. Idempotent.

        Args:
            linger_ms: How long libzmq may go on sending, in its own thread, what it has taken.
        """
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._fd)
            self._raw.close(linger_ms)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _option(self, option: int) -> int:
        value = self._raw.get(option)
        assert isinstance(value, int)
        return value

    def _claim(self) -> None:
        if self._busy:
            raise trio.BusyResourceError("another task is using this ZeroMQ socket")
        if self._closed:
            raise trio.ClosedResourceError("this ZeroMQ socket is closed")
        self._busy = True

    def _try_send(self, frames: Sequence[Frame]) -> bool:
        last = len(frames) - 1
        for position, frame in enumerate(frames):
            size_bytes = frame.nbytes if type(frame) is memoryview else len(frame)
            flags = zmq.NOBLOCK if position == last else zmq.NOBLOCK | zmq.SNDMORE
            try:
                self._raw.send(frame, flags, copy=size_bytes < ZERO_COPY_BYTES_MIN)
            except zmq.Again:
                if position:
                    self._finish_dropped(last - position)
                return False
        return True

    def _finish_dropped(self, frames_left: int) -> None:
        """The connection died in mid-message: feed libzmq what it will drop, so that the next send starts afresh."""
        for left in range(frames_left, 0, -1):
            self._raw.send(b"", zmq.NOBLOCK if left == 1 else zmq.NOBLOCK | zmq.SNDMORE)

    def _try_recv(self) -> list[zmq.Frame] | None:
        try:
            frame = self._raw.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        frames = [frame]
        # libzmq hands over whole messages only: the other frames are there already.
        while frame.more:
            frame = self._raw.recv(zmq.NOBLOCK, copy=False)
            frames.append(frame)
        return frames

    async def _wait_for(self, event: int) -> None:
        while not self._option(zmq.EVENTS) & event:
            self._turns.waited()
            self._parked_for = event
            with trio.CancelScope() as self._parked:
                try:
                    await trio.lowlevel.wait_readable(self._fd)
                finally:
                    self._parked = None
            if self._closed:
                raise trio.ClosedResourceError("this ZeroMQ socket was closed by another task")

    def _wake_parked(self) -> None:
        """A call may have consumed the edge that the parked task waits for; look on its behalf."""
        if self._parked is not None and self._option(zmq.EVENTS) & self._parked_for:
            self._parked.cancel()
