"""Every family that we can build tiny: the engine writes stock transformers' greedy tokens, also from split experts."""

from __future__ import annotations

import json
import random
import warnings

import pytest
import torch
import trio
from transformers import AutoModelForCausalLM

from meshmoe.engine.engine import open_engine
from meshmoe.engine.model import load_moe_model
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.model.tiny_configs import TINY_FAMILIES
from tests.engine.support import Scattered, complete, pool_of

NEW_TOKENS = 12


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_greedy_tokens_are_stock(family, tmp_path):
    make_tiny_checkpoint(family, tmp_path, seed=3)
    checkpoint = Checkpoint.open(tmp_path)
    model = load_moe_model(checkpoint, torch.float32)
    rng = random.Random(family)
    # Longer than one chunk, shorter than one chunk.
    prompts = [tuple(rng.randrange(3, model.vocabulary_size) for _ in range(n)) for n in (270, 9)]
    here = [expert for expert in model.experts if rng.random() < 0.4]
    there = [expert for expert in model.experts if expert not in here]

    async def main():
        async with (
            open_engine(model, pool_of(checkpoint, model, model.experts)) as whole,
            open_engine(model, pool_of(checkpoint, model, there)) as peer,
            open_engine(model, pool_of(checkpoint, model, here), Scattered([peer], 0.0005)) as split,
        ):
            options = {"max_tokens": NEW_TOKENS, "ignore_eos": True, "logprobs": 0}
            return [(await complete(whole, p, **options), await complete(split, p, **options)) for p in prompts]

    results = trio.run(main)
    expected = stock_tokens(tmp_path, prompts)
    for (whole, split), ids in zip(results, expected, strict=True):
        assert whole.ids == ids
        assert split.ids == ids
        assert split.logprobs == whole.logprobs, "placement changed the bits"
        assert split.finish.stats.expert_calls_remote > 0
        assert whole.finish.stats.hit_ratio == 1.0


@pytest.mark.parametrize("length", [270, 295, 310])
def test_position_frequencies_that_switch_with_length(length, tmp_path):
    """LongRoPE: a text that grows past the switch is read again, as stock does, and a longer prompt is read whole."""
    make_tiny_checkpoint("phimoe", tmp_path, seed=4)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["original_max_position_embeddings"] = 300
    config["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0 + i for i in range(8)],
        "short_mscale": 1.0,
        "long_mscale": 1.2,
        "original_max_position_embeddings": 300,
    }
    path.write_text(json.dumps(config))
    checkpoint = Checkpoint.open(tmp_path)
    model = load_moe_model(checkpoint, torch.float32)
    assert model.cache.switch_tokens == 300
    prompt = tuple(random.Random(length).randrange(3, model.vocabulary_size) for _ in range(length))

    async def main():
        async with open_engine(model, pool_of(checkpoint, model, model.experts)) as engine:
            return await complete(engine, prompt, max_tokens=NEW_TOKENS, ignore_eos=True)

    assert trio.run(main).ids == stock_tokens(tmp_path, [prompt])[0]


@torch.no_grad()
def stock_tokens(directory, prompts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    if stock._can_set_experts_implementation():
        stock.set_experts_implementation("eager")
    stock.generation_config.eos_token_id = None
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        full = stock.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        out.append(full[0, len(prompt) :].tolist())
    return out
