"""Expert calls in both directions: peers' calls beside own prefill, and peers that fail or talk nonsense."""

from __future__ import annotations

import random

import pytest
import torch
import trio
import trio.testing

from meshmoe.core.errors import ExpertUnavailableError, OverloadedError, PeerError, RequestError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.engine import open_engine
from meshmoe.engine.pool import ExpertPool, NotResidentError
from tests.engine.support import Scattered, complete, edge, edge_pool, subset, until, with_engine


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
