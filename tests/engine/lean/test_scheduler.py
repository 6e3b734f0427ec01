"""Requests that advance together write what each writes alone, in whatever room there is."""

from __future__ import annotations

import random

import pytest
import torch
import trio

from meshmoe.core.errors import RequestError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.drafts.mode import parse_draft_mode
from meshmoe.engine.engine import EngineLimits, open_engine
from meshmoe.engine.kernels import crew
from meshmoe.engine.lean.member import Member
from meshmoe.engine.pool import ExpertPool
from tests.engine.support import Scattered, complete, edge, edge_pool, subset

RNG = random.Random(8)
PROMPTS = [tuple(RNG.randrange(3, 4096) for _ in range(RNG.choice((1, 5, 30, 100)))) for _ in range(12)]
OPTIONS = {"max_tokens": 24, "ignore_eos": True, "logprobs": 0}


def block_bytes(model):
    return 32 * model.lean.token_bytes


def together(dtype, limits, prompts=PROMPTS, pool=None, remote=None, watch=None):
    """Texts and log-probabilities of requests that come at about the same time, and the engine's last figures."""

    async def main():
        found = {}
        async with open_engine(edge(dtype)[1], pool or edge_pool(dtype), remote, limits) as engine:

            async def one(at):
                await trio.sleep(0.002 * (at % 5))
                result = await complete(engine, prompts[at], **OPTIONS)
                found[at] = (result.ids, result.logprobs, result.finish.stats)

            with trio.fail_after(100):
                async with trio.open_nursery() as nursery:
                    for at in range(len(prompts)):
                        nursery.start_soon(one, at)
                    if watch is not None:
                        nursery.start_soon(watch, engine, found)
            assert engine.stats().cache_bytes == 0
        return [found[at] for at in range(len(prompts))]

    return trio.run(main)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def alone(request):
    return request.param, together(request.param, EngineLimits(active_max=1))


def same(found, alone):
    return [(ids, logprobs) for ids, logprobs, _ in found] == [(ids, logprobs) for ids, logprobs, _ in alone]


def test_all_at_once(alone):
    dtype, expected = alone
    found = together(dtype, EngineLimits(active_max=16, drafts=parse_draft_mode("off")))  # steps are counted
    assert same(found, expected)
    for (ids, _, stats), prompt in zip(found, PROMPTS, strict=True):
        assert stats.decode_tokens == len(ids) - 1 >= stats.decode_steps  # drafts may save some
        assert stats.prompt_tokens == len(prompt)


def test_several_threads_write_the_same_texts(alone, monkeypatch):
    dtype, expected = alone
    offered = []
    leave = crew.Crew.__exit__
    monkeypatch.setattr(crew.Crew, "__exit__", lambda self, *e: (offered.append(self.offers), leave(self, *e))[1])
    assert same(together(dtype, EngineLimits(active_max=16, threads=3)), expected)
    assert offered[0] > 1000


def test_in_so_little_room_that_texts_must_give_way(alone):
    dtype, expected = alone
    budget = 7 * block_bytes(edge(dtype)[1])
    most = []

    async def watch(engine, found):
        while len(found) < len(PROMPTS):
            most.append(engine.stats().cache_bytes)
            await trio.sleep(0.001)

    found = together(dtype, EngineLimits(active_max=16, kv_cache_bytes=budget), watch=watch)
    assert same(found, expected)
    assert 0.5 * budget < max(most) <= budget


def test_over_a_mesh(alone):
    dtype, expected = alone
    model, whole = edge(dtype)[1], edge_pool(dtype)
    rng = random.Random(3)
    here = subset(whole, [expert for expert in model.experts if rng.random() < 0.6])

    async def main():
        async with open_engine(model, whole) as peer:
            remote = Scattered([peer], 0.002)
            async with open_engine(model, here, remote, EngineLimits(active_max=16)) as engine:
                found = [None] * len(PROMPTS)

                async def one(at):
                    result = await complete(engine, PROMPTS[at], **OPTIONS)
                    found[at] = (result.ids, result.logprobs, result.finish.stats)

                with trio.fail_after(100):
                    async with trio.open_nursery() as nursery:
                        for at in range(len(PROMPTS)):
                            nursery.start_soon(one, at)
            return found, remote.calls

    found, calls = trio.run(main)
    assert same(found, expected)
    assert max(len(call.hidden) for call in calls if call.decode) > 1, "one call for several requests"
    rounds = sum(stats.decode_rounds for _, _, stats in found)
    assert sum(call.decode for call in calls) < rounds / 2, "each call serves several requests"


def test_a_text_that_begins_like_another_is_not_read_again():
    prompt = PROMPTS[0] * 20 + tuple(range(100, 200))

    async def main():
        async with open_engine(edge()[1], edge_pool()) as engine:
            first = await complete(engine, prompt, **OPTIONS)
            again = await complete(engine, prompt, **OPTIONS)
            longer = await complete(engine, (*prompt, *first.ids, 7), **OPTIONS)
            return first, again, longer, engine.counts.copy()

    first, again, longer, counts = trio.run(main)
    assert (again.ids, again.logprobs) == (first.ids, first.logprobs)
    assert first.finish.stats.shared_tokens == 0
    assert again.finish.stats.shared_tokens == (len(prompt) - 1) // 32 * 32
    # Its answer has been read, too, but for the last token.
    assert longer.finish.stats.shared_tokens == (len(prompt) + len(first.ids) - 1) // 32 * 32
    read = sum(len(p) - r.finish.stats.shared_tokens for p, r in ((prompt, first), (prompt, again)))
    read += len(prompt) + len(first.ids) + 1 - longer.finish.stats.shared_tokens
    assert sum(int(layer.sum()) for layer in counts.prefill) == read * edge()[1].lean.expert_calls


def test_a_prompt_for_which_there_can_never_be_room():
    async def main():
        limits = EngineLimits(kv_cache_bytes=4 * block_bytes(edge()[1]))
        async with open_engine(edge()[1], edge_pool(), None, limits) as engine:
            with pytest.raises(RequestError, match=r"has 100 tokens; .* room for 96.*--kv-cache"):
                await complete(engine, (5,) * 100)
            assert len((await complete(engine, (5,) * 80, ignore_eos=True)).ids) == 16

    trio.run(main)


def test_cancelling_all_of_a_step_ends_its_call_to_peers():
    class Never:
        running = 0

        async def compute(self, call):
            self.running += 1
            try:
                await trio.sleep_forever()
            finally:
                self.running -= 1

    async def main():
        remote = Never()
        async with open_engine(edge()[1], ExpertPool(1 << 20), remote) as engine:
            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    for prompt in PROMPTS[:3]:
                        nursery.start_soon(complete, engine, prompt)
                    with trio.fail_after(30):
                        while not remote.running:
                            await trio.sleep(0.01)
                    nursery.cancel_scope.cancel()
                with trio.fail_after(30):
                    while remote.running or engine.compute.live:
                        await trio.sleep(0.01)

    trio.run(main)


def test_one_that_cannot_be_sampled_costs_the_others_no_token(monkeypatch):
    read = Member.read

    def fail_for_one(member, logits):
        if logits is not None and member.writer.ids[:5] == list(prompts[3][:5]):
            raise RequestError("its form is too complex")
        return read(member, logits)

    prompts = [tuple(range(10 * i + 3, 10 * i + 8)) for i in range(8)]
    expected = together(torch.float32, EngineLimits(active_max=1), prompts)
    monkeypatch.setattr(Member, "read", fail_for_one)

    async def main():
        found = {}
        async with open_engine(edge()[1], edge_pool()) as engine:

            async def one(at):
                try:
                    result = await complete(engine, prompts[at], **OPTIONS)
                    found[at] = (result.ids, result.logprobs)
                except RequestError as error:
                    found[at] = str(error)

            with trio.fail_after(100):
                async with trio.open_nursery() as nursery:
                    for at in range(len(prompts)):
                        nursery.start_soon(one, at)
        return found

    found = trio.run(main)
    assert found.pop(3) == "its form is too complex"
    assert found == {at: (ids, logprobs) for at, (ids, logprobs, _) in enumerate(expected) if at != 3}


def test_one_that_fails_does_not_take_the_others_along():
    whole = edge_pool()
    lacking = ExpertId(5, 3)
    pool = subset(whole, [expert for expert in edge()[1].experts if expert != lacking])

    async def main():
        outcomes = []
        async with open_engine(edge()[1], pool) as engine:

            async def one(prompt):
                try:
                    outcomes.append((await complete(engine, prompt, max_tokens=2, ignore_eos=True)).ids)
                except Exception as error:
                    outcomes.append(str(error))

            async with trio.open_nursery() as nursery:
                for prompt in PROMPTS:
                    nursery.start_soon(one, prompt)
        return outcomes

    outcomes = trio.run(main)
    failed = [found for found in outcomes if isinstance(found, str)]
    assert all("experts 5/3" in found for found in failed)
    assert 0 < len(failed) < len(PROMPTS)
