"""The engine's promises beside exactness: admission, cancellation, priorities, errors, slow consumers."""

from __future__ import annotations

import dataclasses
import gc
import random
import weakref

import pytest
import torch
import trio
import trio.testing

from meshmoe.core.errors import ExpertUnavailableError, OverloadedError, PeerError, RequestError
from meshmoe.core.ids import ExpertId
from meshmoe.engine import generate
from meshmoe.engine.engine import EngineLimits, open_engine
from meshmoe.engine.pool import ExpertPool, NotResidentError
from meshmoe.engine.request import FinishEvent, GenerationRequest, SamplingParams, TokenEvent
from tests.engine.support import Scattered, complete, edge, edge_pool, subset


def request(text="The history of the", **sampling):
    ids = text if isinstance(text, tuple) else tuple(edge()[1].tokenizer(text).input_ids)
    return GenerationRequest(prompt_ids=ids, sampling=SamplingParams(**sampling))


async def until(condition):
    with trio.fail_after(50):
        while not condition():
            await trio.sleep(0.001)


def with_engine(test, *, pool=None, remote=None, **limits):
    async def main():
        with trio.fail_after(60):
            async with open_engine(edge()[1], pool or edge_pool(), remote, EngineLimits(**limits)) as engine:
                await test(engine)
                assert engine.stats().active == engine.stats().queued == 0
                await until(lambda: engine._compute.live == 0)

    trio.run(main)


def test_the_bundled_model_writes_sensible_text():
    async def test(engine):
        result = await complete(engine, "The history of the", max_tokens=40)
        assert result.text.isprintable() or "\n" in result.text
        words = result.text.split()
        assert len(words) > 10
        assert sum(word.isalpha() for word in words) > len(words) / 2
        prompt = "def __init__(self, name):\n        self.name = name\n"
        python = await complete(engine, prompt, max_tokens=40, logprobs=0)
        assert any(word in python.text for word in ("def ", "self", "return", "import", "class "))
        assert sum(python.logprobs) / len(python.logprobs) > -2, "a model that has learned nothing has -8.3"

    with_engine(test)


def test_stats_and_events():
    async def test(engine):
        result = await complete(engine, "The history of the", max_tokens=12, logprobs=2, ignore_eos=True)
        stats = result.finish.stats
        assert result.finish.reason == "length"
        assert stats.completion_tokens == len(result.ids) == 12
        assert stats.decode_tokens == 11
        assert stats.prompt_tokens == 4 or stats.prompt_tokens > 0
        assert stats.prefill_s > 0
        assert stats.decode_s > 0
        assert stats.queue_s >= 0
        assert stats.hit_ratio == 1.0
        assert stats.rounds_per_token == 0
        assert stats.remote_wait_s == 0
        snapshot = engine.stats()
        assert snapshot.tokens_written == 12
        assert snapshot.tokens_per_s > 0
        assert 0 < snapshot.busy <= 1
        assert snapshot.cache_bytes == 0

    with_engine(test)


def test_stop_string_and_end_of_text():
    async def test(engine):
        free = await complete(engine, "The history of the", max_tokens=30, ignore_eos=True)
        stop = free.text[20:26]
        cut = await complete(engine, "The history of the", max_tokens=30, ignore_eos=True, stop=(stop, "never"))
        assert cut.finish.reason == "stop"
        assert cut.text == free.text[: free.text.index(stop)]
        assert len(cut.ids) < len(free.ids)
        eos = free.ids[7]
        model = dataclasses.replace(engine.model, eos_ids=frozenset([eos]))
        async with open_engine(model, engine.pool) as other:
            ended = await complete(other, "The history of the", max_tokens=30)
        assert ended.finish.reason == "stop"
        assert ended.ids == free.ids[: free.ids.index(eos)]

    with_engine(test)


@pytest.mark.parametrize(
    ("prompt", "sampling", "words"),
    [
        ((), {}, ["empty"]),
        ((5,) * 3000, {}, ["3000 tokens", "context is 2048"]),
        ((5, 4096), {}, ["vocabulary of 4096"]),
        ((-1,), {}, ["vocabulary"]),
        ((5,), {"temperature": -1.0}, ["temperature is -1.0", "between 0 and 100"]),
        ((5,), {"top_p": 0.0}, ["top_p"]),
        ((5,), {"max_tokens": 0}, ["max_tokens is 0", "at least 1"]),
        ((5,), {"stop": ("",)}, ["stop"]),
        ((5,), {"logprobs": 21}, ["logprobs"]),
    ],
)
def test_requests_that_make_no_sense(prompt, sampling, words):
    async def test(engine):
        with pytest.raises(RequestError) as caught:
            await complete(engine, prompt, **sampling)
        for word in words:
            assert word in str(caught.value)

    with_engine(test)


def test_the_context_ends_a_text():
    async def test(engine):
        model = dataclasses.replace(engine.model, context_length=12)
        async with open_engine(model, engine.pool) as small:
            for asked in (None, 100):
                result = await complete(small, tuple(range(5, 13)), max_tokens=asked, ignore_eos=True)
                assert result.finish.reason == "length"
                assert len(result.ids) == 4
            assert len((await complete(small, tuple(range(5, 16)))).ids) <= 1
            with pytest.raises(RequestError, match="has 12 tokens; the model's context is 12"):
                await complete(small, tuple(range(5, 17)))

    with_engine(test)


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


def test_a_peers_call_is_served_within_a_chunk_of_prefill():
    """The peer's call waits for a layer, not for the chunk: between its arrival and its answer no chunk can end."""

    async def test(engine):
        rng = random.Random(2)
        prompt = tuple(rng.randrange(1, 4096) for _ in range(1500))
        hidden = torch.randn(1, 256)
        waits = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(complete, engine, prompt)
            generation = await first_running(engine)
            chunks_before = []
            while generation.context_tokens < 1200:
                before, started = generation.context_tokens, trio.current_time()
                await engine.compute_experts(3, [(5, [0])], hidden, decode=True, deadline=started + 10)
                waits.append(trio.current_time() - started)
                chunks_before.append(generation.context_tokens - before)
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        assert len(waits) > 8
        assert sorted(chunks_before)[len(chunks_before) // 2] == 0
        assert max(chunks_before) <= 256

    with_engine(test)


async def first_running(engine):
    await until(lambda: engine._running)
    return engine._running[0]


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


def test_errors_go_to_the_request_that_they_belong_to():
    class Faulty:
        def __init__(self, inner):
            self.inner = inner

        async def compute(self, call):
            if call.layer == 4 and len(call.hidden) >= 7:  # together with others, too
                raise ExpertUnavailableError("expert 4/9 is gone")
            return await self.inner.compute(call)

    async def main():
        async with open_engine(edge()[1], edge_pool()) as peer:

            async def test(engine):
                good = []

                async def bad():
                    with pytest.raises(ExpertUnavailableError, match="4/9 is gone"):
                        await complete(engine, (5,) * 7, max_tokens=5)

                async def fine():
                    good.append(await complete(engine, (5,) * 6, max_tokens=5, ignore_eos=True))

                async with trio.open_nursery() as nursery:
                    for job in (bad, fine, bad, fine):
                        nursery.start_soon(job)
                assert len(good) == 2
                assert good[0].ids == good[1].ids

            remote = Faulty(Scattered([peer]))
            async with open_engine(edge()[1], ExpertPool(1 << 30), remote) as engine:
                await test(engine)
                assert engine.stats().active == 0
                await until(lambda: engine._compute.live == 0)

    trio.run(main)


@pytest.mark.parametrize("answer", ["nothing", "rows", "dtype"])
def test_nonsense_from_the_mesh_is_an_error(answer):
    class Wrong:
        async def compute(self, call):
            if answer == "nothing":
                return {}
            dtype = torch.float64 if answer == "dtype" else torch.float32
            extra = answer == "rows"
            return {e: torch.zeros(len(rows) + extra, 256, dtype=dtype) for e, rows in call.rows.items()}

    async def test(engine):
        with pytest.raises(PeerError, match="expert 0/"):
            await complete(engine, "a", max_tokens=5)

    with_engine(test, pool=ExpertPool(1 << 20), remote=Wrong())


def test_without_peers_a_missing_expert_is_named():
    async def test(engine):
        with pytest.raises(ExpertUnavailableError, match=r"experts 0/\d+"):
            await complete(engine, "a", max_tokens=5)

    with_engine(test, pool=ExpertPool(1 << 20))


def test_peer_calls():
    whole = edge_pool()
    pool = subset(whole, [ExpertId(2, 7), ExpertId(2, 9)])

    async def test(engine):
        hidden = torch.randn(6, 256)
        soon = trio.current_time() + 10
        both = await engine.compute_experts(2, [(9, [1, 4]), (7, [])], hidden, decode=True, deadline=soon)
        assert both.shape == (8, 256)
        one = await engine.compute_experts(2, [(7, list(range(6)))], hidden, decode=False, deadline=soon)
        assert torch.equal(both[2:], one)
        with pytest.raises(NotResidentError) as caught:
            calls = [(9, [0]), (3, [0]), (1, [0])]
            await engine.compute_experts(2, calls, hidden, decode=True, deadline=soon)
        assert caught.value.experts == (ExpertId(2, 1), ExpertId(2, 3))
        with pytest.raises(OverloadedError, match="deadline"):
            await engine.compute_experts(2, [(9, [1])], hidden, decode=True, deadline=trio.current_time() - 1)
        for layer, calls, states in (
            (8, [(9, [0])], hidden),
            (2, [(32, [0])], hidden),
            (2, [], hidden),
            (2, [(9, [6])], hidden),
            (2, [(9, [-1])], hidden),
            (2, [(9, [0])], hidden.double()),
            (2, [(9, [0])], hidden[0]),
        ):
            with pytest.raises(RequestError):
                await engine.compute_experts(layer, calls, states, decode=True, deadline=soon)

    with_engine(test, pool=pool)


def test_peer_calls_are_bounded():
    async def test(engine):
        refused = []

        async def call():
            try:
                hidden = torch.randn(400, 256)
                deadline = trio.current_time() + 30
                await engine.compute_experts(0, [(e, []) for e in range(32)], hidden, decode=False, deadline=deadline)
            except OverloadedError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(call)
        assert len(refused) == 5

    with_engine(test, peer_calls_max=4)


def test_the_finish_event_is_the_last():
    async def test(engine):
        async with engine.generate(request(max_tokens=3, ignore_eos=True)) as events:
            seen = [event async for event in events]
        assert [type(event) for event in seen] == [TokenEvent] * 3 + [FinishEvent]

    with_engine(test)
