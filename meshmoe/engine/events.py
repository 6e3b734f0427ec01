"""The way of a request's events from its greenlet to the trio task that consumes them."""

from __future__ import annotations

import contextlib

import trio

from meshmoe.engine.compute import Job
from meshmoe.engine.request import GenerationEvent


class EventStream:
    """A bounded stream. A consumer that falls behind by ``events_max`` events pauses its own request, nothing else."""

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self._send, self._receive = trio.open_memory_channel[GenerationEvent](events_max)
        self._emitted = 0
        """Written by the compute thread only."""
        self._taken = 0
        """Written by the trio thread only; when the compute thread reads it late, it just waits needlessly."""
        self._failure: Exception | None = None

    def emit(self, job: Job, event: GenerationEvent) -> None:
        """Hand over an event; on the compute thread. Parks the job while the stream is full."""
        if self._emitted - self._taken < self._events_max:
            job.post(self._put, event)
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
        self._taken += 1
        return event

    def _put(self, event: GenerationEvent) -> None:
        # There is room: emit counted. The consumer may have gone, and then nobody misses the event.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._send.send_nowait(event)
