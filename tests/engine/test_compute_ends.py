"""The compute thread: cancelled jobs, abandoned calls and stopping leave nothing behind."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
import trio
import trio.testing

from meshmoe.engine.compute import ComputeError, open_compute
from meshmoe.engine.job import JobCancelled
from meshmoe.engine.schedule import Priority
from tests.engine.support import until

pytestmark = pytest.mark.filterwarnings("error")


class Held:
    """Something that a job holds on to."""


@pytest.mark.parametrize("where", ["queued", "running", "parked", "between"])
def test_cancellation_leaves_nothing(where):
    async def main():
        held = Held()
        alive = weakref.ref(held)
        state = {"unwound": False, "remote": None, "gate": threading.Event()}

        async def remote():
            state["remote"] = "running"
            try:
                await trio.sleep_forever()
            finally:
                state["remote"] = "ended"

        def work(job, thing):
            try:
                state["started"] = True
                if where == "parked":
                    job.call(remote).wait()
                elif where == "running":
                    while True:
                        time.sleep(0.001)
                        job.checkpoint()
                else:
                    while True:
                        time.sleep(0.001)
                        job.turn(Priority.DECODE)
            except JobCancelled:
                state["unwound"] = True
                raise
            finally:
                del thing

        def block(job):
            state["gate"].wait(5)

        async with open_compute(threads=1, jobs_max=50) as compute, trio.open_nursery() as nursery:
            if where == "queued":
                nursery.start_soon(compute.run, Priority.PEER_DECODE, block)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(lambda thing: compute.run(Priority.DECODE, work, thing, nursery=inner), held)
                    del held
                    if where == "queued":
                        await trio.sleep(0.05)
                        state["gate"].set()
                        inner.cancel_scope.cancel()
                    else:
                        await until(lambda: state["remote"] if where == "parked" else state.get("started"))
                        scope.cancel()
            assert scope.cancelled_caught or where == "queued"
            assert compute.live == 0
            assert not compute._hub_jobs
            gc.collect()
            assert alive() is None, gc.get_referrers(alive())
            assert state["remote"] == ("ended" if where == "parked" else None)
            assert state["unwound"] or where == "queued"
            assert await compute.run(Priority.DECODE, lambda job: "alive") == "alive"

    trio.run(main)


def test_a_failing_job_abandons_its_call():
    async def main():
        ended = trio.Event()

        async def remote():
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        def work(job):
            call = job.call(remote)
            job.call(trio.sleep, 0.01).wait()
            call.abandon()
            raise ValueError

        async with open_compute(threads=1, jobs_max=5) as compute, trio.open_nursery() as nursery:
            with pytest.raises(ValueError):
                await compute.run(Priority.DECODE, work, nursery=nursery)
            with trio.fail_after(30):
                await ended.wait()

    trio.run(main)


def test_stopping_unwinds_what_still_runs():
    outcomes = []

    async def main():
        async def ask(compute, nursery):
            def work(job):
                job.call(trio.sleep_forever).wait()

            with pytest.raises(ComputeError) as caught:
                await compute.run(Priority.DECODE, work, nursery=nursery)
            outcomes.append(caught.value)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            async with open_compute(threads=1, jobs_max=5) as compute:
                nursery.start_soon(ask, compute, nursery)
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ComputeError):
                await compute.run(Priority.DECODE, lambda job: 1)

    trio.run(main)
    assert len(outcomes) == 1


def test_stopping_has_a_deadline(caplog):
    started, release = threading.Event(), threading.Event()

    def stuck(job):
        started.set()
        release.wait(10)

    async def main():
        async def ask(compute):
            with pytest.raises(ComputeError):
                await compute.run(Priority.DECODE, stuck)

        async with trio.open_nursery() as nursery:
            async with open_compute(threads=1, jobs_max=5, stop_timeout_s=0.2) as compute:
                nursery.start_soon(ask, compute)
                await until(started.is_set)
                stopped_at = trio.current_time()
            assert trio.current_time() - stopped_at < 8.0, "the job has 10 s"
        release.set()

    trio.run(main)
    assert "left behind" in caplog.text
