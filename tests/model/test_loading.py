"""Trunk and experts put together are the stock model, for every family."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from meshmoe.core.errors import CheckpointError
from meshmoe.core.ids import ExpertId
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.experts_modules import find_experts_modules
from meshmoe.model.loading import load_expert, load_trunk
from meshmoe.model.tensors import ALIGNMENT_BYTES
from meshmoe.model.tiny import randomize
from meshmoe.model.tiny_configs import tiny_config
from tests.families import (
    LOGITS_TOLERANCE,
    NAMED_FAMILIES,
    OTHER_FAMILIES,
    install_local_experts,
    sample_ids,
    stock_model,
)


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("family", [*NAMED_FAMILIES, *OTHER_FAMILIES])
def test_logits_are_the_stock_models(tiny, family):
    directory = tiny(family)
    checkpoint = Checkpoint.open(directory)
    model = load_trunk(checkpoint, torch.float32)
    install_local_experts(model, checkpoint)
    ids = sample_ids()
    stock = stock_model(directory)
    expected, actual = logits_of(stock, ids), logits_of(model, ids)
    if family in LOGITS_TOLERANCE:
        torch.testing.assert_close(actual, expected, rtol=0, atol=LOGITS_TOLERANCE[family])
        assert torch.equal(actual.argmax(-1), expected.argmax(-1))
    else:
        assert torch.equal(actual, expected)
    assert expected.std() > 0.01, "a model that says the same of everything tests nothing"


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "ernie4_5_moe", "dbrx"])
def test_bfloat16_is_bitwise_the_stock_models_too(tiny, family):
    directory = tiny(family, dtype=torch.bfloat16)
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.dtype == torch.bfloat16
    model = load_trunk(checkpoint)
    install_local_experts(model, checkpoint)
    stock = stock_model(directory, torch.bfloat16)
    assert {n: p.dtype for n, p in model.named_parameters()}.items() <= {
        n: p.dtype for n, p in stock.named_parameters()
    }.items()
    assert torch.equal(logits_of(model, sample_ids()), logits_of(stock, sample_ids()))


@pytest.mark.parametrize("family", NAMED_FAMILIES)
def test_trunk_has_everything_but_the_experts(tiny, family):
    directory = tiny(family)
    checkpoint = Checkpoint.open(directory)
    model = load_trunk(checkpoint)
    stock = stock_model(directory)
    ours, theirs = dict(model.named_parameters()), dict(stock.named_parameters())
    stripped = {f"{m.name}.{name}" for m in find_experts_modules(stock) for name in m.parameter_names}
    assert stripped
    assert set(theirs) - set(ours) == stripped
    assert all(torch.equal(p, theirs[name]) for name, p in ours.items())
    assert dict(model.named_buffers()).keys() == dict(stock.named_buffers()).keys()
    assert all(torch.equal(b, dict(stock.named_buffers())[n]) for n, b in model.named_buffers())
    assert model.generation_config.to_dict() == stock.generation_config.to_dict()
    assert model.config.to_dict() | {"_name_or_path": ""} == stock.config.to_dict() | {"_name_or_path": ""}
    assert not model.training


def test_the_language_model_of_a_composite_checkpoint(tmp_path):
    vision = {"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
    text = tiny_config("qwen3_5_moe_text").to_dict()
    config = AutoConfig.for_model("qwen3_5_moe", text_config=text, vision_config=vision)
    whole = AutoModelForImageTextToText.from_config(config)
    randomize(whole, seed=0)
    whole.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.family == "qwen3_5_moe_text"
    assert checkpoint.layout.ignored
    assert all("visual" in key for key in checkpoint.layout.ignored)
    model = load_trunk(checkpoint, torch.float32)
    install_local_experts(model, checkpoint, torch.float32)
    assert torch.equal(logits_of(model, sample_ids()), logits_of(stock_model(tmp_path), sample_ids()))


def test_tied_weights_stay_tied(tiny):
    model = load_trunk(Checkpoint.open(tiny("ernie4_5_moe")))
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "granitemoe", "dbrx"])
def test_expert_weights_are_private_and_aligned(tiny, family):
    checkpoint = Checkpoint.open(tiny(family))
    stock = {m.name: m for m in find_experts_modules(stock_model(tiny(family)))}
    for layer in checkpoint.layers:
        module = stock[layer.name].module
        for index in (0, layer.n_experts - 1):
            weights = load_expert(checkpoint, ExpertId(layer.ordinal, index))
            for name, tensor in weights.items():
                full = module.get_parameter(name)
                expected = full.view(layer.n_experts, -1, full.shape[-1])[index].reshape(tensor.shape)
                assert torch.equal(tensor, expected)
                assert tensor.is_contiguous()
                assert tensor.data_ptr() % ALIGNMENT_BYTES == 0
            # One allocation for all of an expert, and none that is shared with another expert or the file.
            memory = {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights.values()
            }
            assert len(memory) == 1
            assert sum(memory.values()) <= sum(t.nbytes for t in weights.values()) + 64 * len(weights)


def test_trunk_parameters_are_aligned(tiny):
    # lfm2 and deepseek have one-to-many converters and odd sizes among them.
    for family in ("qwen3_moe", "deepseek_v2", "lfm2_moe", "jamba"):
        model = load_trunk(Checkpoint.open(tiny(family)))
        assert all(p.data_ptr() % ALIGNMENT_BYTES == 0 and p.is_contiguous() for p in model.parameters())


def test_dtype_can_be_chosen(tiny):
    checkpoint = Checkpoint.open(tiny("mixtral"))
    weights = load_expert(checkpoint, ExpertId(0, 3), torch.bfloat16)
    exact = load_expert(checkpoint, ExpertId(0, 3))
    assert all(torch.equal(weights[name], exact[name].bfloat16()) for name in exact)
    assert next(load_trunk(checkpoint, torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_verified_loading(copied):
    directory = copied()
    checkpoint = Checkpoint.open(directory)
    expert = ExpertId(1, 2)
    with pytest.raises(CheckpointError, match="compute the manifest first"):
        load_expert(checkpoint, expert, verify=True)
    checkpoint.manifest()
    load_expert(checkpoint, expert, verify=True)
    unit = bytes(checkpoint.read_expert_unit(expert))
    content = (directory / "model.safetensors").read_bytes()
    at = content.index(unit[:64])
    with (directory / "model.safetensors").open("r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    with pytest.raises(CheckpointError, match="expert 1/2 is damaged"):
        load_expert(checkpoint, expert, verify=True)


def test_no_such_expert(tiny):
    checkpoint = Checkpoint.open(tiny())
    for expert in (ExpertId(0, 8), ExpertId(3, 0), ExpertId(0, -1)):
        assert not checkpoint.has_expert(expert)
        with pytest.raises(CheckpointError, match=f"no expert {expert}"):
            load_expert(checkpoint, expert)


def test_loading_from_many_threads(tiny):
    checkpoint = Checkpoint.open(tiny())
    expected = {e: load_expert(checkpoint, e) for e in checkpoint.experts()}
    wrong: list[ExpertId] = []

    def work():
        for expert, weights in expected.items():
            loaded = load_expert(checkpoint, expert)
            if any(not torch.equal(loaded[name], weights[name]) for name in weights):
                wrong.append(expert)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_prepare_and_progress(tiny):
    checkpoint = Checkpoint.open(tiny())
    prepared, done = [], []
    model = load_trunk(checkpoint, prepare=prepared.append, progress=done.append)
    assert prepared == [model]
    assert done == sorted(done)
    assert done[-1] == checkpoint.trunk_bytes


def test_loading_leaves_torch_and_transformers_as_they_were(tiny, capfd):
    import transformers

    before = torch.get_default_dtype(), transformers.logging.get_verbosity()
    load_trunk(Checkpoint.open(tiny("qwen3_moe", dtype=torch.bfloat16)))
    assert before == (torch.get_default_dtype(), transformers.logging.get_verbosity())
    assert capfd.readouterr() == ("", "")
