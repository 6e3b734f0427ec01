"""What one engine writes: sensible text, its events and figures, where a text ends, and what is no request."""

from __future__ import annotations

import dataclasses
import time

import pytest
import trio

import meshmoe.engine.engine as engine_module
from meshmoe.core.errors import RequestError
from meshmoe.engine.engine import open_engine
from meshmoe.engine.request import FinishEvent, TokenEvent
from tests.engine.support import complete, edge, edge_pool, request, with_engine


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


def test_the_finish_event_is_the_last():
    async def test(engine):
        async with engine.generate(request(max_tokens=3, ignore_eos=True)) as events:
            seen = [event async for event in events]
        assert [type(event) for event in seen] == [TokenEvent] * 3 + [FinishEvent]

    with_engine(test)


def test_the_loop_goes_on_while_memory_is_taken_and_kernels_are_compiled(monkeypatch):
    # On a card that takes seconds, and a node that answers no probe meanwhile is suspected.
    real, ticks = engine_module._lean_engine, []

    def slow(*args):
        until = len(ticks) + 3
        for _ in range(1000):
            if len(ticks) >= until:
                return real(*args)
            time.sleep(0.01)
        raise AssertionError("the loop stood still")

    async def main():
        async def tick():
            while True:
                ticks.append(1)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            async with open_engine(edge()[1], edge_pool()) as engine:
                assert engine.stats().cache_capacity_bytes
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(engine_module, "_lean_engine", slow)
    trio.run(main)
