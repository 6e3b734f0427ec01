"""Who is let in and how requests leave: overload, leaving early, cancellation, slow readers."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import trio
import trio.testing

from meshmoe.core.errors import OverloadedError
from meshmoe.engine import generate
from meshmoe.engine.engine import EngineLimits, open_engine
from meshmoe.engine.request import TokenEvent
from tests.engine.support import Scattered, complete, edge, edge_pool, request, subset, until, with_engine


def test_overload_is_said_at_once_and_the_queue_is_served_in_order():
    async def test(engine):
        order = []

        async def one(name):
            await complete(engine, "a", max_tokens=3, ignore_eos=True)
            order.append(name)

        first = engine.generate(request(max_tokens=500, ignore_eos=True))
        async with trio.open_nursery() as nursery, first as events:
            await anext(events)
            for number, name in enumerate("abc", 1):
                nursery.start_soon(one, name)
                await until(lambda queued=number: engine.stats().queued == queued)
            assert engine.stats().active == 1
            with pytest.raises(OverloadedError):
                await one("d")
        assert order == ["a", "b", "c"]

    with_engine(test, active_max=1, queue_max=3)


def test_leaving_early_ends_everything_at_once():
    async def test(engine):
        async with engine.generate(request(max_tokens=1000, ignore_eos=True)) as events:
            async for event in events:
                assert isinstance(event, TokenEvent)
                break
        assert engine.stats().active == 0
        await until(lambda: engine._compute.live == 0)
        written = engine.stats().tokens_written
        await trio.sleep(0.05)
        assert engine.stats().tokens_written == written

    with_engine(test)


def test_a_consumers_exception_comes_out_as_it_is():
    async def test(engine):
        with pytest.raises(ZeroDivisionError):
            async with engine.generate(request(max_tokens=1000)) as events:
                await anext(events)
                raise ZeroDivisionError
        assert engine.stats().active == 0

    with_engine(test)


def test_cancellation_at_random_points_leaves_nothing_behind(monkeypatch):
    model, whole = edge()[1], edge_pool()
    caches = weakref.WeakSet()
    new_cache = generate.MoeModel.new_cache

    def watched(self):
        cache = new_cache(self)
        caches.add(cache)
        return cache

    monkeypatch.setattr(generate.MoeModel, "new_cache", watched)

    async def main():
        rng = random.Random(5)
        rest = [expert for expert in model.experts if rng.random() < 0.5]
        here = subset(whole, [expert for expert in model.experts if expert not in rest])
        async with open_engine(model, subset(whole, rest)) as peer:
            remote = Scattered([peer], 0.003)
            async with open_engine(model, here, remote, EngineLimits(active_max=4)) as engine:

                async def one(number):
                    options = {"max_tokens": 200, "ignore_eos": True}
                    with trio.move_on_after(rng.random() * 0.4):
                        if number % 3:
                            await complete(engine, tuple(range(3, 3 + 40 * (number % 5) + 1)), **options)
                        else:
                            async with engine.generate(request(**options)) as events:
                                async for _ in events:
                                    if rng.random() < 0.2:
                                        break

                with trio.fail_after(60):
                    async with trio.open_nursery() as nursery:
                        for number in range(24):
                            nursery.start_soon(one, number)
                assert engine.stats().active == engine.stats().queued == 0
                await until(lambda: engine._compute.live == 0)
                assert engine.stats().cache_bytes == 0
                assert not engine._compute._hub_jobs
                assert remote.running == 0
                await until(lambda: peer._compute.live == 0)
                await complete(engine, "still", max_tokens=2)
        assert len(remote.calls) > 20
        remote.calls.clear()

    trio.run(main)
    gc.collect()
    assert not list(caches)


def test_a_slow_consumer_pauses_only_itself():
    async def test(engine):
        async with engine.generate(request(max_tokens=1000, ignore_eos=True)) as slow:
            await anext(slow)
            generation = engine._running[0]
            other = await complete(engine, "def read(self", max_tokens=40, ignore_eos=True)
            assert len(other.ids) == 40
            await until(lambda: generation.stats.completion_tokens >= 8)
            await trio.sleep(0.1)
            assert generation.stats.completion_tokens <= 1 + 8 + 1
            taken = [await anext(slow) for _ in range(30)]
            assert all(isinstance(event, TokenEvent) for event in taken)
        whole = await complete(engine, "The history of the", max_tokens=31, ignore_eos=True)
        assert [event.token_id for event in taken] == whole.ids[1:]

    with_engine(test, events_max=8)
