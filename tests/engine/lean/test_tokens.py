"""The lean path writes the generic path's tokens, for every family that it knows, here or over a mesh."""

from __future__ import annotations

import random

import pytest
import torch
import trio

from meshmoe.core.errors import CheckpointError
from meshmoe.engine.drafts.mode import OFF
from meshmoe.engine.engine import EngineLimits, open_engine
from meshmoe.engine.lean.plan import FAMILIES
from meshmoe.engine.model import load_moe_model
from meshmoe.model import tiny
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.model.tiny_configs import tiny_config
from tests.engine.support import EDGE_12M, Scattered, complete, pool_of

UNDRAFTED = EngineLimits(drafts=OFF)
"""So that counts are of the tokens that were written."""

OPTIONS = {"max_tokens": 16, "ignore_eos": True, "logprobs": 0}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    make_tiny_checkpoint(request.param, directory, seed=5)
    return Checkpoint.open(directory)


def prompts_of(checkpoint):
    rng = random.Random(checkpoint.config.model_type)
    # Longer than a chunk of the prompt, across the end of the cache's first room (one token, then 256 more), short.
    return [tuple(rng.randrange(3, 288) for _ in range(length)) for length in (270, 250, 9, 1)]


def written(checkpoint, dtype, decode, here=None, prompts=None):
    """Texts and log-probabilities, on a node that has the experts ``here`` (all if None) and a peer with the others."""
    model = load_moe_model(checkpoint, dtype, decode=decode)
    assert (model.lean is not None) == (decode != "generic")
    here = model.experts if here is None else here
    there = [expert for expert in model.experts if expert not in here]

    async def main():
        async with (
            open_engine(model, pool_of(checkpoint, model, there)) as peer,
            open_engine(model, pool_of(checkpoint, model, here), Scattered([peer], 0.0003), UNDRAFTED) as engine,
        ):
            found = []
            for prompt in prompts or prompts_of(checkpoint):
                result = await complete(engine, prompt, **OPTIONS)
                found.append((result.ids, result.logprobs))
            return found, result.finish.stats, engine.counts.copy()

    return trio.run(main)


def test_float32_tokens_are_the_generic_paths(family):
    generic, stats, counts = written(family, torch.float32, "generic")
    lean, lean_stats, lean_counts = written(family, torch.float32, "auto")
    for (ids, logprobs), (lean_ids, lean_logprobs) in zip(generic, lean, strict=True):
        assert lean_ids == ids
        assert lean_logprobs == pytest.approx(logprobs, abs=2e-5)
    assert lean_stats.expert_calls_local == stats.expert_calls_local
    assert lean_stats.decode_steps == stats.decode_steps
    for ours, theirs in zip(lean_counts.decode, counts.decode, strict=True):
        assert (ours == theirs).all()


@pytest.mark.parametrize(("dtype", "apart_max"), [(torch.bfloat16, 0.2), (torch.float16, 0.03)])
def test_narrow_tokens_part_from_the_exact_ones_only_at_near_ties(family, dtype, apart_max):
    """Coarse rounding: where the texts part, both tokens are about as likely."""
    exact, lean = written(family, torch.float32, "generic")[0], written(family, dtype, "lean")[0]
    near = []
    for (ids, logprobs), (lean_ids, lean_logprobs) in zip(exact, lean, strict=True):
        for theirs, ours, their_logprob, our_logprob in zip(ids, lean_ids, logprobs, lean_logprobs, strict=True):
            near.append(abs(our_logprob - their_logprob) < apart_max)
            if theirs != ours:
                break
    assert len(near) > 2 * len(exact), "more than the first tokens"
    # A router has near ties too: a few tokens then come from another expert, and are further apart.
    assert sum(near) >= 0.9 * len(near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.7])
def test_placement_changes_no_bit(family, dtype, share):
    model = load_moe_model(family, dtype)
    rng = random.Random(f"{share}{family.config.model_type}")
    here = [expert for expert in model.experts if rng.random() < share]
    prompts = prompts_of(family)[1:3]
    whole, stats, counts = written(family, dtype, "lean", prompts=prompts)
    split, split_stats, split_counts = written(family, dtype, "lean", here, prompts)
    assert split == whole
    calls = split_stats.expert_calls_local + split_stats.expert_calls_remote
    assert calls == stats.expert_calls_local
    assert split_stats.expert_calls_remote > 0
    assert split_stats.decode_rounds > 0
    for ours, theirs in zip(split_counts.decode, counts.decode, strict=True):
        assert (ours == theirs).all()


def test_the_bundled_model_in_float32():
    checkpoint = Checkpoint.open(EDGE_12M)
    model = load_moe_model(checkpoint, torch.float32)
    prompts = [
        tuple(model.tokenizer(text).input_ids) for text in ("The history of the", "def read(self):\n", "7 + 8 =")
    ]
    generic, lean = (written(checkpoint, torch.float32, decode, prompts=prompts)[0] for decode in ("generic", "lean"))
    assert [ids for ids, _ in lean] == [ids for ids, _ in generic]


def test_a_family_that_it_does_not_know(tmp_path):
    checkpoint = Checkpoint.open(make_tiny_checkpoint("deepseek_v3", tmp_path))
    assert load_moe_model(checkpoint, torch.float32).lean is None
    with pytest.raises(CheckpointError, match="deepseek_v3 is not known"):
        load_moe_model(checkpoint, torch.float32, decode="lean")


PECULIAR = {
    "qwen3_moe": {"attention_bias": True, "mlp_only_layers": [1], "norm_topk_prob": False},
    "qwen2_moe": {"norm_topk_prob": True, "qkv_bias": False},
    "olmoe": {"clip_qkv": 0.5, "norm_topk_prob": True, "num_key_value_heads": 4},
    "phimoe": {"attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.2},
    "glm4_moe": {"use_qk_norm": True, "norm_topk_prob": False, "routed_scaling_factor": 2.5, "attention_bias": True},
    "mixtral": {"num_key_value_heads": 1, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", sorted(PECULIAR))
def test_what_configurations_may_switch_on(name, tmp_path, monkeypatch):
    config = tiny_config(name)
    for key, value in PECULIAR[name].items():
        assert hasattr(config, key)
        setattr(config, key, value)
    monkeypatch.setattr(tiny, "tiny_config", lambda _: config)
    checkpoint = Checkpoint.open(make_tiny_checkpoint(name, tmp_path, seed=6))
    prompts = prompts_of(checkpoint)[1:3]
    generic, lean = (written(checkpoint, torch.float32, d, prompts=prompts)[0] for d in ("generic", "lean"))
    assert [ids for ids, _ in lean] == [ids for ids, _ in generic]
    for (_, ours), (_, theirs) in zip(lean, generic, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)
