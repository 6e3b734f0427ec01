"""The compiled expert: as stock computes it, and a row's bits are its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from meshmoe.engine.kernels import choice
from meshmoe.engine.kernels.expert import compute_rows, compute_together
from meshmoe.model.experts_modules import compute_expert, find_experts_modules
from meshmoe.model.tiny_configs import tiny_config

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Of the largest output: other sums in float32, one step of the dtype in the narrow ones."""


def weights_of(hidden, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "gate_up_proj": (torch.randn(2 * width, hidden, generator=generator) / hidden**0.5).to(dtype),
        "down_proj": (torch.randn(hidden, width, generator=generator) / width**0.5).to(dtype),
    }


def rows_of(count, hidden, dtype, seed=1):
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed)).to(dtype)


def experts_of(family):
    return find_experts_modules(AutoModelForCausalLM.from_config(tiny_config(family)))[0].module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("hidden", "width"), [(64, 48), (70, 37), (1024, 512)])
def test_as_torch_computes_it(dtype, hidden, width):
    module, weights = experts_of("qwen3_moe"), weights_of(hidden, width, dtype)
    x = rows_of(7, hidden, dtype)
    got, expected = compute_rows(weights, x), compute_expert(module, weights, x)
    assert got.dtype == dtype
    error = (got.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= TOLERANCE[dtype]
    assert (got == expected).float().mean() > (0.02 if dtype is torch.float32 else 0.9)


@given(
    st.sampled_from(DTYPES),
    st.integers(1, 140),
    st.integers(1, 70),
    st.lists(st.integers(0, 7), min_size=1, max_size=11),
)
@settings(deadline=None, max_examples=60)
def test_a_row_has_the_same_bits_with_any_neighbours(dtype, hidden, width, chosen):
    weights, x = weights_of(hidden, width, dtype), rows_of(8, hidden, dtype)
    together = compute_rows(weights, x[chosen])
    for row, place in zip(together, chosen, strict=True):
        assert torch.equal(row, compute_rows(weights, x[place : place + 1].clone())[0])


def test_bits_do_not_depend_on_where_weights_lie():
    weights, x = weights_of(256, 48, torch.bfloat16), rows_of(1, 256, torch.bfloat16)
    moved = {}
    for name, tensor in weights.items():
        room = torch.empty(tensor.numel() + 3, dtype=tensor.dtype)
        moved[name] = room[3:].view_as(tensor).copy_(tensor)
        assert moved[name].data_ptr() % 64
    assert torch.equal(compute_rows(weights, x), compute_rows(moved, x))


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_the_kernel_is_chosen_by_family_whatever_the_rows(rows):
    weights, x = weights_of(64, 48, torch.float32), rows_of(rows, 64, torch.float32)
    module = experts_of("mixtral")
    stock, ours = compute_expert(module, weights, x), compute_rows(weights, x)
    assert not torch.equal(stock, ours), "pick weights that tell the two apart"
    assert torch.equal(choice.compute(module, weights, x), ours)


@pytest.mark.parametrize("family", ["gpt_oss", "dbrx", "llama4_text", "gemma4_text", "nemotron_h", "lfm2_moe"])
def test_peculiar_experts_are_left_to_torch(family):
    assert not choice.is_plain(experts_of(family))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "glm4_moe", "deepseek_v3"])
def test_plain_experts_are_known(family):
    assert choice.is_plain(experts_of(family))


def test_without_numba_torch_computes(monkeypatch):
    monkeypatch.setattr(choice, "_compiled", None)
    module, weights, x = experts_of("mixtral"), weights_of(64, 48, torch.float32), rows_of(2, 64, torch.float32)
    assert torch.equal(choice.compute(module, weights, x), compute_expert(module, weights, x))
    assert not choice.compiled()


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_experts_at_once_are_each_alone_to_the_bit(dtype):
    held = [weights_of(70, 37, dtype, seed) for seed in range(3)]
    hidden = rows_of(4, 70, dtype)
    rows = [[0, 1, 2, 3], [2], [3, 1]]
    expected = [compute_rows(weights, hidden[numbers].clone()) for weights, numbers in zip(held, rows, strict=True)]
    assert torch.equal(compute_together(held, rows, hidden), torch.cat(expected))
    module = experts_of("qwen3_moe")
    assert torch.equal(choice.compute_together(module, held, rows, hidden), torch.cat(expected))
    assert choice.compute_together(experts_of("gpt_oss"), held, rows, hidden) is None
