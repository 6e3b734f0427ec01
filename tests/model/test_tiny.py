"""Tiny checkpoints are complete, reproducible model directories."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from meshmoe.model.experts_modules import compute_expert, find_experts_modules
from meshmoe.model.tiny import byte_tokenizer, make_tiny_checkpoint
from meshmoe.model.tiny_configs import TINY_FAMILIES, TINY_VOCAB
from tests.families import sample_ids, stock_model


def test_the_same_seed_makes_the_same_files(tiny, tmp_path):
    again = make_tiny_checkpoint("mixtral", tmp_path)
    for path in tiny("mixtral").iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_making_one_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    make_tiny_checkpoint("olmoe", tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_routing_uses_all_experts(tiny, family):
    model = stock_model(tiny(family))
    seen: list[set[int]] = []

    def watch(module, args, kwargs):
        index = next((a for a in (*args, *kwargs.values()) if a.dtype in (torch.int64, torch.int32)), None)
        if index is not None:
            seen.append(set(index.flatten().tolist()))

    for experts in find_experts_modules(model):
        experts.module.register_forward_pre_hook(watch, with_kwargs=True)
    with torch.no_grad():
        model(input_ids=sample_ids(4, 64), use_cache=False)
    assert seen or family == "llama4_text"
    assert all(len(used) >= 6 for used in seen)


@given(st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text).input_ids
    assert all(0 <= token < TINY_VOCAB for token in ids)
    assert tokenizer.decode(ids) == text


def test_the_directory_is_complete(tiny):
    directory = tiny("gpt_oss")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "user: hi\nassistant:"
    assert tokenizer.eos_token_id == json.loads((directory / "generation_config.json").read_text())["eos_token_id"]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_one_expert_computes_what_the_module_computes(tiny, family):
    model = stock_model(tiny(family))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    for experts in find_experts_modules(model)[:1]:
        shapes = {name: experts.module.get_parameter(name) for name in experts.parameter_names}
        weights = {
            name: p.view(-1, 48, 64)[2] if experts.kind == "dbrx" else p[2].detach() for name, p in shapes.items()
        }
        with torch.no_grad():
            actual = compute_expert(experts.module, weights, x)
            if experts.kind == "llama4":
                spread = torch.zeros(8, 5, 64)
                spread[2] = x
                expected = experts.module(spread.view(-1, 64)).view(8, 5, 64)[2]
            else:
                chosen, gates = torch.tensor([[2, 3]] * 5), torch.tensor([[1.0, 0.0]] * 5)
                expected = experts.module(x, chosen, gates).view(5, 64)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
