"""The compute thread: what a job gets, what its calls do meanwhile, and whose faults are whose."""

from __future__ import annotations

import threading
import time

import pytest
import torch
import trio
import trio.testing

from meshmoe.core.errors import OverloadedError
from meshmoe.engine.compute import ComputeError, open_compute
from meshmoe.engine.schedule import Priority
from tests.engine.support import until

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
