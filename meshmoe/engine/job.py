"""A job as its own function sees it: stopping in the middle of a forward, asking the mesh, being cancelled.

A *job* is one call of a function on the compute thread (`meshmoe.engine.compute`), in a greenlet of its own. It gives
the thread back by *parking* (it waits for a `Call` or a `Bell`), by *yielding* (`Job.turn`, `Job.checkpoint`), or by
ending.

Cancellation. The asker marks the job. It raises `JobCancelled` where it stands: at its next checkpoint, or where it is
parked. That is a BaseException, so that no ``except Exception`` on the way swallows it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import greenlet
import outcome
import trio
from torch import Tensor

from meshmoe.engine.schedule import Priority

if TYPE_CHECKING:
    from meshmoe.engine.compute import ComputeThread
    from meshmoe.engine.inlet import Inlet
    from meshmoe.engine.remote import LayerCall, RemoteExperts

T = TypeVar("T")


class JobCancelled(BaseException):
    """Raised inside a job whose asking task was cancelled."""


class CallAbandonedError(Exception):
    """A job waits for a call that was abandoned."""


class Call(Generic[T]):
    """A trio call that a job has sent out: it runs on the trio thread while the job goes on."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._scope: trio.CancelScope | None = None
        self._outcome: outcome.Value[T] | outcome.Error | None = None

    @property
    def ended(self) -> bool:
        """Whether `wait` would return at once."""
        return self._outcome is not None

    def wait(self) -> T:
        """Park the job until the call has ended; once a call.

        Returns:
            What the call returned.

        Raises:
            CallAbandonedError: It was abandoned.
            Exception: Whatever the call raised.
            JobCancelled: The asking task was cancelled.
        """
        if self._outcome is None:
            self._job._park(self)
        assert self._outcome is not None
        return self._outcome.unwrap()

    def abandon(self) -> None:
        """Cancel the call if it still runs; on any thread."""
        if self._outcome is None and self._scope is not None:
            self._job.post(self._scope.cancel)

    def _go_on(self, fn: Callable[..., Awaitable[T]], *args: Any) -> None:
        """On the compute thread: let ``await fn(*args)`` on the trio thread be the call."""
        assert self._job._nursery is not None, "a job without a nursery makes no calls"
        self._scope = scope = trio.CancelScope()
        self._job.post(self._job._nursery.start_soon, self._serve, scope, fn, args)

    async def _serve(self, scope: trio.CancelScope, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        with scope:
            try:
                self._outcome = outcome.Value(await fn(*args))
            except Exception as error:
                self._outcome = outcome.Error(error)
        if scope.cancelled_caught:
            self._outcome = outcome.Error(CallAbandonedError())
        # Sent even when nobody waits yet: the job looks at the outcome first and ignores a late message.
        if self._outcome is not None:
            self._job._wake(self)


class Bell:
    """Wakes one job that waits for it; anyone may ring, on any thread. A ring that nobody waits for is kept."""

    def __init__(self) -> None:
        self._rung = False
        self._job: Job | None = None

    def ring(self) -> None:
        """Wake the job, or let it not wait the next time."""
        self._rung = True
        job = self._job
        if job is not None:
            job._wake(self)

    def wait(self, job: Job) -> None:
        """Park the job until the bell rings, or for no reason.

        Raises:
            JobCancelled: The asking task was cancelled.
        """
        self._job = job
        try:
            if not self._rung:
                job._park(self)
        finally:
            self._rung, self._job = False, None


class Job:
    """One function on the compute thread. Its methods are for that function, which gets the job as first argument.

    Attributes:
        priority: The class that it is queued in.
        cancelled: Whether the asking task no longer wants the result.
        limit: Of the thread's slices.
    """

    def __init__(
        self,
        thread: ComputeThread,
        priority: Priority,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        nursery: trio.Nursery | None,
    ) -> None:
        self.priority = priority
        self.cancelled = False
        self.limit = thread.limit
        self.done = trio.Event()
        self.outcome: outcome.Value[Any] | outcome.Error | None = None
        self._thread = thread
        self._work: tuple[Callable[..., Any], tuple[Any, ...]] | None = (fn, args)
        self._nursery = nursery
        self._greenlet: greenlet.greenlet | None = None
        self._waits_for: Call[Any] | Bell | None = None
        self._ended: Callable[[Job], None] | None = None

    def checkpoint(self) -> None:
        """Let more urgent jobs go first, then go on.

        Raises:
            JobCancelled: The asking task was cancelled.
        """
        self._raise_if_cancelled()
        self._thread._hub_preempt(self)

    def turn(self, priority: Priority) -> None:
        """End the slice: go on as a job of ``priority``, after those that already wait in that class.

        Raises:
            JobCancelled: The asking task was cancelled.
        """
        self.priority = priority
        self._raise_if_cancelled()
        self._thread._hub_requeue(self)

    def call(self, fn: Callable[..., Awaitable[T]], *args: Any) -> Call[T]:
        """Start ``await fn(*args)`` on the trio thread, in the nursery that the job was given."""
        call: Call[T] = Call(self)
        call._go_on(fn, *args)
        return call

    def ask(self, remote: RemoteExperts, call: LayerCall) -> Call[dict[int, Tensor]]:
        """Have experts computed by the mesh: through the inlet where it can do that, else on the trio thread."""
        inlet = self._thread._inlet
        under_way = inlet.send(self, call) if inlet is not None else None
        self.limit.hurry()  # answers are waited for now, and have deadlines
        return self.call(remote.compute, call.kept()) if under_way is None else under_way

    @property
    def inlet(self) -> Inlet | None:
        """The thread's."""
        return self._thread._inlet

    @property
    def alone(self) -> bool:
        """Whether no other job has anything to do."""
        return self._thread._hub_alone

    def enter_lane(self) -> bool:
        """Compiled code is about to attend to the lane, where it may wait: see `Inlet.enter`."""
        return self._thread._hub_enter_lane()

    def leave_lane(self, waited_s: float) -> None:
        """It has come back, having had nothing to do for so long."""
        self._thread._hub_leave_lane()
        if waited_s:
            self._thread._hub_waited(waited_s)

    def interrupt(self) -> None:
        """Let compiled code come back soon, even from the lane; on any thread."""
        self._thread._interrupt()

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Run ``fn(*args)`` on the trio thread soon; calls keep their order, and ``fn`` must not raise."""
        self._thread._post(fn, *args)

    def _raise_if_cancelled(self) -> None:
        if self.cancelled:
            raise JobCancelled

    def _park(self, call: Call[Any] | Bell) -> None:
        self._raise_if_cancelled()
        self._waits_for = call
        self._thread._hub.switch()
        self._raise_if_cancelled()

    def _wake(self, call: Call[Any] | Bell) -> None:
        self._thread._tell(self._thread._hub_wake, (self, call))

    def _body(self) -> None:
        assert self._work is not None
        (fn, args), self._work = self._work, None
        try:
            self.outcome = outcome.Value(fn(self, *args))
        except JobCancelled:
            pass
        except BaseException as error:
            self.outcome = outcome.Error(error)
