"""Where experts are changes nothing: tokens, text and logprobs are bitwise the same under any placement and load."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import numpy as np
import pytest
import torch
import trio

from meshmoe.core.ids import ExpertId
from meshmoe.engine.drafts.mode import OFF
from meshmoe.engine.engine import EngineLimits, open_engine
from meshmoe.engine.pool import ExpertPool
from tests.engine.support import Scattered, complete, edge, edge_pool, subset

PROMPTS = ("The history of the", "def read(self, path):\n", "37 + 48 =", "butter: ", "static int open(")
GREEDY = {"max_tokens": 7, "logprobs": 3, "ignore_eos": True}
SAMPLED = GREEDY | {"temperature": 0.9, "top_p": 0.95, "top_k": 200, "repetition_penalty": 1.1, "seed": 11}


def outcome_of(result):
    return result.ids, result.text, result.logprobs


def run_split(placement, limits, dtype, prompts):
    """Generate for all prompts at once on a node that has only part of the experts; the peers have the others."""
    model, whole = edge(dtype)[1], edge_pool(dtype)

    async def main():
        async with AsyncExitStack() as stack:
            pools = [subset(whole, experts) for experts in placement]
            peers = [await stack.enter_async_context(open_engine(model, pool)) for pool in pools[1:]]
            remote = Scattered(peers, seed=len(prompts))
            engine = await stack.enter_async_context(open_engine(model, pools[0], remote, limits))
            results = {}

            async def one(key):
                text, options = key
                results[key] = await complete(engine, text, **dict(options))

            async with trio.open_nursery() as nursery:
                for key in prompts:
                    nursery.start_soon(one, key)
            assert remote.running == 0
            return results

    return trio.run(main)


def run_whole(dtype, prompts):
    model, whole = edge(dtype)[1], edge_pool(dtype)

    async def main():
        async with open_engine(model, whole, limits=EngineLimits(drafts=OFF)) as engine:
            return {key: await complete(engine, key[0], **dict(key[1])) for key in prompts}

    return trio.run(main)


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float32, 0.0), (torch.float32, 0.4), (torch.float32, 0.9), (torch.bfloat16, 0.4)]
)
def test_any_placement_any_load(dtype, share):
    model = edge(dtype)[1]
    rng = random.Random(f"{share}{dtype}")
    here = [expert for expert in model.experts if rng.random() < share]
    rest = [expert for expert in model.experts if expert not in here]
    # Two peers whose experts overlap.
    placement = [here, [e for e in rest if rng.random() < 0.6], rest]
    prompts = [(text, tuple(options.items())) for text in PROMPTS for options in (GREEDY, SAMPLED)]
    alone = run_whole(dtype, prompts)
    split = run_split(placement, EngineLimits(active_max=10, drafts=OFF), dtype, prompts)
    for key in prompts:
        assert outcome_of(split[key]) == outcome_of(alone[key]), key
        stats = split[key].finish.stats
        assert stats.expert_calls_local + stats.expert_calls_remote == alone[key].finish.stats.expert_calls_local
        assert stats.decode_steps == 6
        if share < 0.5:
            assert 0 < stats.decode_rounds <= 6 * 8
            assert 1 <= stats.prefill_rounds <= 8
            assert stats.remote_wait_s > 0
            assert stats.hit_ratio < 0.6


def test_experts_that_move_during_a_generation():
    """Evictions and arrivals at any moment are harmless while somebody has the expert."""
    model, whole = edge()[1], edge_pool()
    prompt = ("The history of the", tuple((GREEDY | {"max_tokens": 20}).items()))
    expected = run_whole(torch.float32, [prompt])[prompt]

    async def main():
        rng = random.Random(4)
        pool = ExpertPool(1 << 30)
        async with (
            open_engine(model, whole) as peer,
            open_engine(model, pool, Scattered([peer], 0.0005)) as engine,
            trio.open_nursery() as nursery,
        ):

            async def mover():
                while True:
                    expert = rng.choice(model.experts)
                    if not pool.evict(expert):
                        pool.add(expert, whole.get(expert))
                    await trio.sleep(0.0002)

            nursery.start_soon(mover)
            result = await complete(engine, prompt[0], **dict(prompt[1]))
            nursery.cancel_scope.cancel()
        assert 0 < result.finish.stats.hit_ratio < 1
        return result

    assert outcome_of(trio.run(main)) == outcome_of(expected)


def test_activations_are_counted_for_all_experts_wherever_they_are():
    model, whole = edge()[1], edge_pool()

    async def main():
        async with (
            open_engine(model, whole) as peer,
            open_engine(model, subset(whole, [ExpertId(0, 0)]), Scattered([peer], 0.0)) as engine,
        ):
            tokens = tuple(model.tokenizer("The history of").input_ids)
            await complete(engine, tokens, max_tokens=5, ignore_eos=True)
            counts = engine.counts.copy()
            assert [int(layer.sum()) for layer in counts.prefill] == [len(tokens) * 4] * 8
            assert [int(layer.sum()) for layer in counts.decode] == [4 * 4] * 8
            assert not any(int(layer.sum()) for layer in peer.counts.decode), "a peer's calls are not its own demand"
            prompt, *steps = engine.counts.log.take()
            assert not prompt.decode and prompt.sets.shape == (len(tokens), 8, 4)
            assert all(step.decode and step.sets.shape == (1, 8, 4) for step in steps) and len(steps) == 4
            for passes, counted in (([prompt], counts.prefill), (steps, counts.decode)):
                for layer, total in enumerate(counted):
                    chosen = np.concatenate([routed.sets[:, layer].ravel() for routed in passes])
                    assert np.bincount(chosen, minlength=len(total)).tolist() == total.tolist()
            assert peer.counts.log.take() == []

    trio.run(main)
