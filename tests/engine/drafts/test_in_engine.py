"""Drafts through the whole engine: batches, streams, stops and cancellations, over a mesh that is slow."""

from __future__ import annotations

import json
import random

import pytest
import torch
import trio

from meshmoe.engine.drafts.mode import parse_draft_mode
from meshmoe.engine.engine import EngineLimits, open_engine
from meshmoe.engine.request import GenerationRequest, SamplingParams
from tests.engine.support import Scattered, complete, edge, edge_pool, subset

SCHEMA = json.dumps({"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]})
PROMPTS = [
    "The history of the",
    "def read(self):\n",
    "7 + 8 = 15\n9 + 8 =",
    "lantern, noun: a lamp with",
    "int main(",
    "a: ",
    "the the the",
    "lantern, noun:",
]
OPTIONS = [
    {"max_tokens": 30, "ignore_eos": True},
    {"max_tokens": 25, "temperature": 0.9, "seed": 4, "logprobs": 1},
    {"max_tokens": 40, "stop": ("+", "=")},
    {"max_tokens": 1},
    {"max_tokens": 30, "temperature": 0.7, "top_k": 20, "seed": 1, "repetition_penalty": 1.2},
    {"max_tokens": 40, "json_schema": SCHEMA},
    {"max_tokens": 30, "frequency_penalty": 0.6, "presence_penalty": 0.3, "logit_bias": ((260, 2.0), (5, -100.0))},
    {"max_tokens": 30, "temperature": 0.8, "seed": 3, "frequency_penalty": -0.2, "presence_penalty": 1.5},
]


def written(mode, share, interrupted=False):
    """What eight requests that run together write, on a node that holds a share of the experts."""
    _, model = edge(torch.bfloat16)
    whole = edge_pool(torch.bfloat16)
    rng = random.Random(2)
    here = subset(whole, [e for e in model.experts if rng.random() < share])
    found = {}

    async def ask(engine, at):
        result = await complete(engine, PROMPTS[at], **OPTIONS[at])
        found[at] = (result.ids, result.text, result.logprobs, result.finish.reason)

    async def give_up(engine):
        request = GenerationRequest(prompt_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=200, ignore_eos=True))
        with trio.move_on_after(0.05):
            async with engine.generate(request) as events:
                async for _ in events:
                    pass

    async def main():
        limits = EngineLimits(drafts=parse_draft_mode(mode))
        async with open_engine(model, whole) as peer:
            mesh = Scattered([peer], 0.004)
            async with open_engine(model, here, mesh, limits) as engine, trio.open_nursery() as nursery:
                for at in range(len(PROMPTS)):
                    nursery.start_soon(ask, engine, at)
                if interrupted:
                    for _ in range(3):
                        nursery.start_soon(give_up, engine)
            assert mesh.running == 0
        return found

    return trio.run(main)


@pytest.fixture(scope="module")
def plain():
    return written("off", 1.0)


@pytest.mark.parametrize("mode", ["4", "lookup", "auto"])
def test_texts_are_those_of_a_node_that_has_everything_and_drafts_nothing(plain, mode):
    assert written(mode, 0.5, interrupted=True) == plain


def test_stop_strings_and_limits_cut_a_pass_short(plain):
    ids, text, _, reason = plain[2]
    assert reason == "stop"
    assert not set("+=") & set(text)
    assert written("9", 0.6)[2] == (ids, text, plain[2][2], reason)


def test_a_text_of_a_prescribed_form_has_it(plain):
    assert plain[5][1].startswith('{"sum": ')


def test_drafts_are_counted():
    _, model = edge(torch.bfloat16)
    rng = random.Random(2)
    here = subset(edge_pool(torch.bfloat16), [e for e in model.experts if rng.random() < 0.6])

    async def main():
        limits = EngineLimits(drafts=parse_draft_mode("3"))
        async with (
            open_engine(model, edge_pool(torch.bfloat16)) as peer,
            open_engine(model, here, Scattered([peer], 0.001), limits) as engine,
        ):
            return (await complete(engine, PROMPTS[0], max_tokens=40, ignore_eos=True)).finish.stats

    stats = trio.run(main)
    assert stats.decode_tokens == 39
    assert stats.decode_tokens == stats.decode_steps + stats.accepted_tokens
    assert stats.accepted_tokens <= stats.drafted_tokens <= 3 * stats.decode_steps
    assert stats.acceptance == stats.accepted_tokens / stats.drafted_tokens
    assert stats.tokens_per_pass > 1
