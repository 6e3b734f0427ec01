"""The way of a request's events from its greenlet to the trio task that consumes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import trio

from meshmoe.engine.job import Job
from meshmoe.engine.request import GenerationEvent

_NEARLY_FULL = 4


class EventStream:
    """A bounded stream. A consumer that falls behind by ``events_max`` events pauses its own request, nothing else."""

    def __init__(self, events_max: int, on_taken: Callable[[], None] | None = None) -> None:
        """``on_taken`` is called when the consumer has taken an event from a stream that was nearly full."""
        self._events_max = events_max
        self._on_taken = on_taken
        self._send, self._receive = trio.open_memory_channel[GenerationEvent](events_max)
        self._emitted = 0
        """Written by the compute thread only."""
        self._taken = 0
        """Written by the trio thread only; when the compute thread reads it late, it just waits needlessly."""
        self._failure: Exception | None = None

    @property
    def room(self) -> int:
        """Events that can be put without waiting."""
        return self._events_max - (self._emitted - self._taken)

    def count(self, events: int) -> None:
        """Announce events that will be `put`; on the compute thread, and only as many as there is room for."""
        self._emitted += events

    def emit(self, job: Job, event: GenerationEvent) -> None:
        """Hand over an event; on the compute thread. Parks the job while the stream is full."""
        if self.room > 0:
            job.post(self.put, event)
        else:
            job.call(self._send.send, event).wait()
        self._emitted += 1

    def end(self) -> None:
        """No more events come; on the trio thread."""
        self._send.close()

    def fail(self, failure: Exception) -> None:
        """No more events come, and the consumer gets ``failure`` after those that did; on the trio thread."""
        self._failure = failure
        self._send.close()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> GenerationEvent:
        try:
            event = await self._receive.receive()
        except trio.EndOfChannel:
            failure, self._failure = self._failure, None
            if failure is None:
                raise StopAsyncIteration from None
            try:
                raise failure from None
            finally:
                del failure
        was_full = self.room < _NEARLY_FULL
        self._taken += 1
        if was_full and self._on_taken is not None:
            self._on_taken()
        return event

    def put(self, event: GenerationEvent) -> None:
        """Hand over an event that was counted; on the trio thread."""
        # The consumer may have gone, and then nobody misses the event.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._send.send_nowait(event)
