"""The compute thread: order, waiting, cancellation, faults, stopping."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
import torch
import trio
import trio.testing

from meshmoe.core.errors import OverloadedError
from meshmoe.engine.compute import ComputeError, JobCancelled, open_compute
from meshmoe.engine.schedule import Priority

pytestmark = pytest.mark.filterwarnings("error")


def test_runs_on_one_thread_without_gradients():
    async def main():
        async with open_compute(threads=1, jobs_max=10) as compute:
            seen = []

            def work(job, value):
                seen.append((threading.current_thread().name, torch.is_grad_enabled(), torch.get_num_threads()))
                return value * 2

            assert await compute.run(Priority.DECODE, work, 21) == 42
            assert seen == [("meshmoe-compute", False, 1)]
            assert compute.live == 0
        assert not any(t.name == "meshmoe-compute" and t.is_alive() for t in settle(threading.enumerate))

    trio.run(main)


def settle(fn):
    time.sleep(0.05)
    return fn()


async def until(condition):
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.001)


def test_a_fault_goes_to_its_caller_and_the_thread_lives_on():
    class Fault(BaseException):
        pass

    async def main():
        async with open_compute(threads=1, jobs_max=10) as compute:

            def bad(job, error):
                raise error

            for error in (ValueError("a"), Fault("b")):
                with pytest.raises(type(error)) as caught:
                    await compute.run(Priority.DECODE, bad, error)
                assert caught.value is error
            assert await compute.run(Priority.DECODE, lambda job: 1) == 1

    trio.run(main)


def test_calls_run_on_trio_while_the_job_goes_on():
    async def main():
        log = []

        async def ask(x):
            log.append(("asked", threading.current_thread() is threading.main_thread()))
            with trio.fail_after(10):
                while "on" not in log:  # the job must get there although its calls are not over
                    await trio.sleep(0.001)
            return x + 1

        async def fail():
            raise KeyError("remote")

        def work(job):
            first, second = job.call(ask, 1), job.call(ask, 10)
            log.append("on")
            total = first.wait() + second.wait()
            with pytest.raises(KeyError):
                job.call(fail).wait()
            return total

        async with open_compute(threads=1, jobs_max=10) as compute, trio.open_nursery() as nursery:
            assert await compute.run(Priority.DECODE, work, nursery=nursery) == 13
        assert log.count(("asked", True)) == 2

    trio.run(main)


def test_waiting_jobs_do_not_hold_up_others():
    async def main():
        async with open_compute(threads=1, jobs_max=50) as compute, trio.open_nursery() as nursery:

            def work(job):
                for _ in range(5):
                    job.call(trio.sleep, 0.1).wait()

            started = trio.current_time()
            async with trio.open_nursery() as jobs:
                for _ in range(20):
                    jobs.start_soon(lambda: compute.run(Priority.DECODE, work, nursery=nursery))
            assert trio.current_time() - started < 5.0, "20 jobs of 0.5 s, one after the other, would take 10 s"

    trio.run(main)


def test_urgent_work_goes_first_and_equals_take_turns():
    async def main():
        order = []
        started, gate = threading.Event(), threading.Event()

        def hold(job):
            started.set()
            gate.wait(5)

        def work(job, name, turns):
            for turn in range(turns):
                order.append(f"{name}{turn}")
                job.turn(job.priority)

        async with open_compute(threads=1, jobs_max=50) as compute, trio.open_nursery() as nursery:
            nursery.start_soon(compute.run, Priority.PEER_DECODE, hold)
            await until(started.is_set)
            for priority, name in ((Priority.PREFILL, "p"), (Priority.DECODE, "d"), (Priority.DECODE, "e")):
                nursery.start_soon(compute.run, priority, work, name, 2)
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(compute.run, Priority.PEER_DECODE, work, "x", 1)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        decodes = [name for name in order if name[0] in "de"]
        assert order[0] == "x0"
        assert decodes == ["d0", "e0", "d1", "e1"]

    trio.run(main)


def test_a_checkpoint_lets_only_urgent_work_in():
    async def main():
        order = []
        ready = threading.Event()

        def prefill(job, name):
            for layer in range(3):
                if layer == 1 and name == "a":
                    ready.wait(5)
                order.append(f"{name}{layer}")
                job.checkpoint()

        async with open_compute(threads=1, jobs_max=50) as compute, trio.open_nursery() as nursery:
            for name in "ab":
                nursery.start_soon(compute.run, Priority.PREFILL, prefill, name)
                await until(lambda: order)
            nursery.start_soon(compute.run, Priority.PEER_DECODE, lambda job: order.append("peer"))
            await trio.testing.wait_all_tasks_blocked()
            ready.set()
        assert order == ["a0", "a1", "peer", "a2", "b0", "b1", "b2"]

    trio.run(main)


def test_no_class_starves():
    async def main():
        stop = threading.Event()
        counts = {"low": 0, "high": 0}

        def busy(job, name):
            while not stop.is_set():
                time.sleep(0.002)
                counts[name] += 1
                job.turn(job.priority)

        async with open_compute(threads=1, jobs_max=50) as compute, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(compute.run, Priority.DECODE, busy, "high")
            nursery.start_soon(compute.run, Priority.PREFILL, busy, "low")
            await trio.sleep(0.8)
            stop.set()
        share = counts["low"] / (counts["low"] + counts["high"])
        assert 0.1 < share < 0.35, counts

    trio.run(main)


def test_a_long_lonely_run_does_not_count_against_its_class():
    """Slices end at every turn, also where nobody else waits; otherwise a class would have to earn an age."""

    async def main():
        stop = threading.Event()
        counts = {"low": 0, "high": 0}

        def busy(job, name):
            while not stop.is_set():
                time.sleep(0.002)
                counts[name] += 1
                job.turn(job.priority)

        async with open_compute(threads=1, jobs_max=50) as compute, trio.open_nursery() as nursery:
            nursery.start_soon(compute.run, Priority.PREFILL, busy, "low")
            await trio.sleep(0.5)
            alone = counts["low"]
            nursery.start_soon(compute.run, Priority.DECODE, busy, "high")
            await trio.sleep(0.5)
            stop.set()
        assert counts["low"] - alone > 0.1 * counts["high"], (alone, counts)

    trio.run(main)


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


def test_bounded():
    async def main():
        gate = threading.Event()
        async with open_compute(threads=1, jobs_max=2) as compute, trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(compute.run, Priority.DECODE, lambda job: gate.wait(5))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(OverloadedError):
                await compute.run(Priority.DECODE, lambda job: 1)
            gate.set()

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


def test_a_job_that_gets_no_memory_to_begin_with_fails_alone(monkeypatch):
    class NoMemory:
        dead = False

        def __init__(self, *_arguments):
            pass

        def __bool__(self):
            return False

        def switch(self):
            raise MemoryError

    async def main():
        async with open_compute(threads=1, jobs_max=5) as compute:
            with monkeypatch.context() as patched:
                patched.setattr("meshmoe.engine.compute.greenlet.greenlet", NoMemory)
                with pytest.raises(MemoryError):
                    await compute.run(Priority.DECODE, lambda job: 1)
            assert await compute.run(Priority.DECODE, lambda job: 2) == 2
            assert compute.live == 0

    trio.run(main)


def test_a_fault_of_the_thread_itself_reaches_everyone(monkeypatch, caplog):
    async def main():
        async with open_compute(threads=1, jobs_max=5) as compute, trio.open_nursery() as nursery:
            with trio.move_on_after(0.1) as waited:
                await compute.wait_failed()
            assert waited.cancelled_caught, "nothing has failed yet"

            async def ask():
                with pytest.raises(ComputeError):
                    await compute.run(Priority.DECODE, lambda job: job.call(trio.sleep_forever).wait(), nursery=nursery)

            async with trio.open_nursery() as asking:
                asking.start_soon(ask)
                await until(lambda: compute._hub_jobs)
                monkeypatch.setattr(compute, "_hub_read_inbox", lambda: 1 / 0)
                asking.start_soon(ask)
            with pytest.raises(ComputeError):
                await compute.run(Priority.DECODE, lambda job: 1)
            assert isinstance(await compute.wait_failed(), ZeroDivisionError)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert "ZeroDivisionError" in caplog.text


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
