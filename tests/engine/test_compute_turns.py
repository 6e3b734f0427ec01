"""The compute thread: who goes first, who lets whom in, and that nobody starves."""

from __future__ import annotations

import threading
import time

import pytest
import trio
import trio.testing

from meshmoe.engine.compute import open_compute
from meshmoe.engine.kernels.compiling import jit
from meshmoe.engine.kernels.stopping import due
from meshmoe.engine.schedule import Priority
from tests.engine.support import until

pytestmark = pytest.mark.filterwarnings("error")


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


def counting():
    """An event that ends it, slices by name, and a job that takes slices of 2 ms until then."""
    stop = threading.Event()
    counts = {"low": 0, "high": 0}

    def busy(job, name):
        while not stop.is_set():
            time.sleep(0.002)
            counts[name] += 1
            job.turn(job.priority)

    return stop, counts, busy


def test_no_class_starves():
    async def main():
        stop, counts, busy = counting()

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
        stop, counts, busy = counting()

        async with open_compute(threads=1, jobs_max=50) as compute, trio.open_nursery() as nursery:
            nursery.start_soon(compute.run, Priority.PREFILL, busy, "low")
            await trio.sleep(0.5)
            alone = counts["low"]
            nursery.start_soon(compute.run, Priority.DECODE, busy, "high")
            await trio.sleep(0.5)
            stop.set()
        assert counts["low"] - alone > 0.1 * counts["high"], (alone, counts)

    trio.run(main)


@jit
def compute_until_due(limit, most):
    for at in range(most):
        if due(limit):
            return at
    return most


def test_compiled_code_comes_back_for_whatever_the_thread_is_told():
    async def main():
        began, most, told = threading.Event(), 1 << 33, []

        def work(job):
            assert compute_until_due(job.limit.address, 0) == 0  # compiled before it counts
            job.checkpoint()
            job.limit.begin()
            began.set()
            reached = compute_until_due(job.limit.address, most)
            job.checkpoint()
            return reached, list(told), due(job.limit.address)

        async with open_compute(threads=1, jobs_max=2) as compute, trio.open_nursery() as nursery:

            async def tell():
                await until(began.is_set)
                await trio.sleep(0.01)
                compute.tell(told.append, "something")

            nursery.start_soon(tell)
            reached, heard, still = await compute.run(Priority.DECODE, work)
        assert 0 < reached < most and heard == ["something"] and not still

    trio.run(main)
