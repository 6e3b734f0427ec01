"""One thread computes; trio waits. Jobs are greenlets on that thread, so a job can stop in the middle of a forward.

Why. A transformers forward is a deep stack of synchronous Python, and a layer in its middle may need a peer's answer.
A greenlet parks that stack and the thread takes up another job; the waiting itself is an ordinary trio task. The trio
loop never computes, so it stays punctual, and there is no thread a request that would fight for the interpreter lock.

Words. A *job* (`meshmoe.engine.job`) is one call of a function on the compute thread. The *hub* is the thread's main
greenlet: it picks the next job and switches to it. A *slice* is what runs until the job gives the thread back.

Who owns what. Everything named ``_hub_*`` belongs to the compute thread alone. The trio thread reaches it through one
queue of ``(method, argument)`` pairs, the *inbox*; the compute thread reaches trio through ``run_sync_soon``, which
keeps the order. There is no lock. An *inlet* (`meshmoe.engine.inlet`) may bring work to the thread past trio; then the
thread waits in it, and whoever puts something into the inbox wakes it there.

Order. Cancelled jobs first (they only unwind), then as `RunQueue` has it. A job visits the hub at every layer, so a
peer's call waits for one layer of a prompt, not for a whole chunk of it.

Cancellation. The trio task that waits in `ComputeThread.run` marks the job and posts it, and the job raises
`JobCancelled` where it stands. ``run`` returns only after that, so when it has returned nothing of the job is left.

Grad mode is per thread and is switched off once; a ``no_grad()`` that spans a switch would leak into the other jobs.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, cast

import greenlet
import outcome
import torch
import trio

from meshmoe.core.errors import MeshmoeError, OverloadedError
from meshmoe.engine.job import Bell, Call, Job
from meshmoe.engine.kernels.limit import SliceLimit
from meshmoe.engine.schedule import Priority, RunQueue

if TYPE_CHECKING:
    from meshmoe.engine.inlet import Inlet

T = TypeVar("T")

_log = logging.getLogger(__name__)


class ComputeError(MeshmoeError):
    """The compute thread is stopping or has failed."""

    http_status = 503


class ComputeThread:
    """The thread, as trio sees it. Made by `open_compute`.

    Attributes:
        limit: Of its slices.
    """

    def __init__(self, threads: int, jobs_max: int, around: contextlib.AbstractContextManager[object]) -> None:
        self._threads = threads
        self._around = around
        self._jobs_max = jobs_max
        self._live: set[Job] = set()
        self._failure: BaseException | None = None
        self._closing = False
        self._stopped = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self.limit = SliceLimit()
        self._inbox: queue.SimpleQueue[tuple[Callable[[Any], None], Any]] = queue.SimpleQueue()
        self._inlet: Inlet | None = None
        self._in_inlet = False
        """Whether the thread is about to wait in the inlet, or does."""
        self._idle_s = 0.0
        self._idle_since: float | None = None
        # The rest belongs to the compute thread.
        self._hub: greenlet.greenlet
        self._hub_jobs: set[Job] = set()
        self._hub_unwinding: deque[Job] = deque()
        self._hub_queue: RunQueue[Job] = RunQueue()
        self._hub_began = (Priority.PREFILL, 0.0)
        """Class and beginning of the slice under way."""
        self._hub_stopping = False

    @property
    def live(self) -> int:
        """Jobs that have been asked for and have not ended."""
        return len(self._live)

    @property
    def idle(self) -> bool:
        """Whether the thread has nothing to do right now."""
        return self._idle_since is not None

    @property
    def idle_s(self) -> float:
        """Seconds that the thread has had nothing to do since it started."""
        since = self._idle_since
        return self._idle_s + (perf_counter() - since if since is not None else 0.0)

    async def run(self, priority: Priority, fn: Callable[..., T], *args: Any, nursery: trio.Nursery | None = None) -> T:
        """Compute ``fn(job, *args)`` on the thread and wait for it.

        Args:
            priority: Its class at first.
            fn: Gets its `Job` as first argument.
            args: The others.
            nursery: Where `Job.call` runs its calls; without one the job can make none. It must outlive this call.

        Returns:
            What ``fn`` returns.

        Raises:
            OverloadedError: There are too many jobs.
            ComputeError: The thread is stopping.
            Exception: Whatever ``fn`` raises.
        """
        if self._closing or self._failure is not None:
            raise ComputeError("the compute thread is not running; the node is stopping") from self._failure
        if len(self._live) >= self._jobs_max:
            raise OverloadedError(
                f"{len(self._live)} computations are waiting on this node already; come back in a moment"
            )
        job = Job(self, priority, fn, args, nursery)
        self._live.add(job)
        try:
            self._tell(self._hub_submit, job)
            try:
                await job.done.wait()
            except trio.Cancelled:
                job.cancelled = True
                self._tell(self._hub_cancel, job)
                with trio.CancelScope(shield=True):
                    await job.done.wait()
                raise
        finally:
            self._live.discard(job)
        # Taken off the job, because an exception's traceback leads back to this frame: that would be a cycle.
        result, job.outcome = job.outcome, None
        try:
            if result is None:
                raise ComputeError("the compute thread stopped before the work was done") from self._failure
            return cast(T, result.unwrap())
        finally:
            del result, job

    async def wait_failed(self) -> BaseException:
        """Wait until the thread has ended by a fault of its own, after which nothing can be computed any more."""
        await self._stopped.wait()
        if self._failure is None:
            await trio.sleep_forever()
        assert self._failure is not None
        return self._failure

    def attach(self, inlet: Inlet) -> None:
        """Poll ``inlet`` from now on; it must outlive the thread."""
        self._tell(self._hub_attach, inlet)

    def tell(self, fn: Callable[[Any], None], argument: Any) -> None:
        """On any thread: run ``fn(argument)`` on the compute thread, between two slices; it must not raise."""
        self._tell(fn, argument)

    def begin(self, priority: Priority, fn: Callable[..., None], *args: Any, ended: Callable[[Job], None]) -> Job:
        """On the compute thread: queue a job that nobody on trio waits for.

        Args:
            priority: Its class.
            fn: Gets its `Job` as first argument; can make no calls.
            args: The others.
            ended: Told on the compute thread when the job has ended, whatever happened; `Job.outcome` says what.
        """
        job = Job(self, priority, fn, args, None)
        job._ended = ended
        self._hub_submit(job)
        return job

    def cancel(self, job: Job) -> None:
        """On the compute thread: let a job unwind that `begin` made."""
        job.cancelled = True
        self._hub_cancel(job)

    def settle(self, call: Call[T], result: outcome.Value[T] | outcome.Error) -> None:
        """On the compute thread: a call has ended that is not served on trio."""
        call._outcome = result
        self._hub_wake((call._job, call))

    def _tell(self, method: Callable[[Any], None], argument: Any) -> None:
        self._inbox.put((method, argument))
        self._interrupt()

    def _interrupt(self) -> None:
        self.limit.cut()
        # Set before the thread looks at its inbox for the last time, so one of the two sees the other.
        if self._in_inlet and self._inlet is not None:
            self._inlet.wake()

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """On any thread: run ``fn(*args)`` on the trio thread soon; ``fn`` must not raise."""
        self._post(fn, *args)

    def _post(self, fn: Callable[..., object], *args: Any) -> None:
        # The loop can only be gone when the process is ending around us; then nobody waits either.
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(fn, *args)

    def _release(self) -> None:
        """On the trio thread: nothing more will be computed, so nobody may wait for it."""
        self._stopped.set()
        for job in self._live:
            job.done.set()

    def _main(self) -> None:
        torch.set_grad_enabled(False)
        torch.set_num_threads(self._threads)
        self._hub = greenlet.getcurrent()
        try:
            with self._around:
                while (job := self._hub_next()) is not None:
                    self._hub_slice(job)
        except BaseException as error:  # a fault in this file: every job must hear of it
            _log.exception("the compute thread failed")
            self._failure = error
        finally:
            self._post(self._release)

    def _hub_next(self) -> Job | None:
        polled = False
        while True:
            self._hub_read_inbox()
            if not polled and (self._hub_unwinding or self._hub_queue):
                self._hub_poll()
            if self._hub_unwinding:
                return self._hub_unwinding.popleft()
            if (job := self._hub_queue.pop()) is not None:
                return job
            if self._hub_stopping and not self._hub_jobs:
                return None
            self._idle_since = perf_counter()
            self._hub_idle()
            self._idle_s += perf_counter() - self._idle_since
            self._idle_since = None
            # Not before it waits, too: it does not wait while something is there.
            self._hub_poll()
            polled = True

    def _hub_idle(self) -> None:
        """Wait for something to do."""
        if self._inlet is None:
            method, argument = self._inbox.get()
            method(argument)
            return
        self._in_inlet = True
        if self._inbox.empty():
            self._inlet.wait()
        self._in_inlet = False

    def _hub_slice(self, job: Job) -> None:
        if job._greenlet is None:
            if job.cancelled:
                self._hub_end(job)
                return
            job._greenlet = greenlet.greenlet(job._body, self._hub)
        self._hub_began = (job.priority, perf_counter())
        try:
            job._greenlet.switch()
        except MemoryError as error:
            if job._greenlet:
                raise  # it had begun: where it stands now nobody can say
            job.outcome = outcome.Error(error)
            self._hub_end(job)
            return
        self._hub_account()
        if job._greenlet.dead:
            self._hub_end(job)

    def _hub_account(self) -> None:
        priority, began = self._hub_began
        self._hub_queue.account(priority, perf_counter() - began)

    def _hub_end(self, job: Job) -> None:
        self._hub_jobs.discard(job)
        job._greenlet = job._work = job._waits_for = None
        if job._ended is not None:
            job._ended(job)
        else:
            self._post(job.done.set)

    def _hub_read_inbox(self) -> None:
        self.limit.mend()  # before, because what is put in later has to cut again
        while not self._inbox.empty():
            method, argument = self._inbox.get()
            method(argument)

    def _hub_look(self) -> None:
        self._hub_read_inbox()
        self._hub_poll()

    def _hub_poll(self) -> None:
        if self._inlet is not None:
            self._inlet.poll()
            self.limit.watch(self._inlet.descriptor())

    @property
    def _hub_alone(self) -> bool:
        """Whether the job under way is the only one that has something to do."""
        return not self._hub_unwinding and not self._hub_queue

    def _hub_enter_lane(self) -> bool:
        self._in_inlet = True  # before the cut is looked at for the last time, as in `_hub_idle`
        if self._inlet is not None and self._inlet.enter():
            return True
        self._in_inlet = False
        return False

    def _hub_leave_lane(self) -> None:
        self._in_inlet = False
        assert self._inlet is not None
        self._inlet.leave()

    def _hub_waited(self, waited_s: float) -> None:
        """For so long of the slice under way compiled code has had nothing to do."""
        self._idle_s += waited_s
        priority, began = self._hub_began
        self._hub_began = priority, began + waited_s

    def _hub_attach(self, inlet: Inlet) -> None:
        self._inlet = inlet
        self.limit.bounded = True  # it has to be polled

    def _hub_submit(self, job: Job) -> None:
        self._hub_jobs.add(job)
        if self._hub_stopping:
            job.cancelled = True
            self._hub_unwinding.append(job)
        else:
            self._hub_queue.push(job.priority, job)

    def _hub_wake(self, job_and_call: tuple[Job, Call[Any] | Bell]) -> None:
        job, call = job_and_call
        if job._waits_for is call:
            job._waits_for = None
            self._hub_queue.push(job.priority, job)

    def _hub_cancel(self, job: Job) -> None:
        # A job that runs right now (this is its checkpoint reading the inbox) sees the mark; all others unwind next.
        parked = job._waits_for is not None
        job._waits_for = None
        if parked or self._hub_queue.remove(job.priority, job):
            self._hub_unwinding.append(job)

    def _hub_stop(self, _: None) -> None:
        self._hub_stopping = True
        for job in tuple(self._hub_jobs):
            job.cancelled = True
            self._hub_cancel(job)

    def _hub_preempt(self, job: Job) -> None:
        """Called on the job's own stack: give way to more urgent jobs only, and come back before one's equals."""
        self._hub_look()
        if self._hub_unwinding or self._hub_queue.more_urgent_than(job.priority):
            self._hub_queue.push_front(job.priority, job)
            self._hub.switch()
        else:
            self._hub_go_on(job)
        job._raise_if_cancelled()

    def _hub_requeue(self, job: Job) -> None:
        """Called on the job's own stack: give way to everyone who waits."""
        self._hub_look()
        if self._hub_unwinding or self._hub_queue:
            self._hub_queue.push(job.priority, job)
            self._hub.switch()
        else:
            self._hub_go_on(job)
        job._raise_if_cancelled()

    def _hub_go_on(self, job: Job) -> None:
        """The job keeps the thread: what comes is another slice all the same, so that slices stay comparable."""
        self._hub_account()
        self._hub_began = (job.priority, perf_counter())


@contextlib.asynccontextmanager
async def open_compute(
    *,
    threads: int,
    jobs_max: int,
    stop_timeout_s: float = 5.0,
    around: contextlib.AbstractContextManager[object] | None = None,
) -> AsyncIterator[ComputeThread]:
    """Run a compute thread for as long as the block lasts.

    Args:
        threads: torch's intra-op threads.
        jobs_max: Jobs at once, running, queued or parked; one more is refused.
        stop_timeout_s: At the end of the block, how long a job that computes may take to reach its next checkpoint.
            A thread that takes longer is left behind (it is a daemon) and the log says so.
        around: Entered by the thread when it starts, and left when it ends.
    """
    compute = ComputeThread(threads, jobs_max, around or contextlib.nullcontext())
    thread = threading.Thread(target=compute._main, name="meshmoe-compute", daemon=True)
    thread.start()
    try:
        yield compute
    finally:
        compute._closing = True
        compute._tell(compute._hub_stop, None)
        with trio.move_on_after(stop_timeout_s, shield=True):
            await compute._stopped.wait()
        if not compute._stopped.is_set():
            _log.error("the compute thread did not stop within %.1f s and is left behind", stop_timeout_s)
            compute._release()
