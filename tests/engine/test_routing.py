"""One layer's experts against the stock module's own eager forward, bit for bit."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from meshmoe.core.ids import ExpertId
from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.dispatch import RequestDispatch
from meshmoe.engine.kernels import choice
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.request import GenerationStats
from meshmoe.engine.routing import aligned, group_by_expert
from meshmoe.model.experts_modules import find_experts_modules
from meshmoe.model.tiny import randomize
from meshmoe.model.tiny_configs import tiny_config


class NoJob:
    def checkpoint(self):
        pass


def layer_of(family, dtype):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=dtype).eval()
    randomize(model, 1)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    experts = find_experts_modules(model)[0]
    pool = ExpertPool(1 << 30)
    for index in range(experts.n_experts):
        names = experts.parameter_names
        weights = {name: experts.module.get_parameter(name)[index].detach().clone() for name in names}
        pool.add(ExpertId(0, index), weights)
    return experts, pool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "nemotron_h", "longcat_flash", "deepseek_v3"])
@torch.no_grad()
def test_a_layer_is_stock_eager_bit_for_bit(family, dtype, monkeypatch):
    monkeypatch.setattr(choice, "_compiled", None)  # compiled kernels sum in another order than torch
    experts, pool = layer_of(family, dtype)
    choices = experts.n_experts + getattr(experts.module, "zero_expert_num", 0)
    for tokens in (1, 2, 7, 40):
        generator = torch.Generator().manual_seed(tokens)
        hidden = torch.randn(tokens, 64, generator=generator).to(dtype)
        index = torch.stack([torch.randperm(choices, generator=generator)[:3] for _ in range(tokens)])
        weights = torch.rand(tokens, 3, generator=generator)
        stats, counts = GenerationStats(), ActivationCounts.zeros([experts.n_experts])
        dispatch = RequestDispatch(NoJob(), pool, None, stats, counts)
        found = dispatch.run(experts, hidden, index, weights)
        expected = experts.module(hidden, index, weights)
        assert found.dtype == expected.dtype == dtype
        assert torch.equal(found, expected), tokens
        routed = int((index < experts.n_experts).sum())
        assert (stats.expert_calls_local, stats.expert_calls_remote) == (routed, 0)
        assert (
            counts.prefill[0].tolist()
            == torch.bincount(index.flatten(), minlength=choices).tolist()[: len(pool.experts())]
        )
        assert not counts.decode[0].any()


def test_groups_are_in_canonical_order():
    rng = random.Random(0)
    for tokens in (1, 2, 30):
        chosen = [rng.sample(range(9), 4) for _ in range(tokens)]
        weights = torch.rand(tokens, 4)
        grouping = group_by_expert(torch.tensor(chosen), weights)
        groups = grouping.groups
        per_group = grouping.weights.squeeze(1).split([len(group.rows) for group in groups])
        assert [group.expert for group in groups] == sorted({e for row in chosen for e in row})
        for group, found in zip(groups, per_group, strict=True):
            rows = sorted(
                (row for row in range(tokens) if group.expert in chosen[row]),
                key=lambda row: (chosen[row].index(group.expert), row),
            )
            assert group.rows.tolist() == rows
            expected = [float(weights[row, chosen[row].index(group.expert)]) for row in rows]
            assert found.tolist() == expected


def test_inputs_are_aligned():
    odd = torch.randn(100)[1:65].view(1, 64)
    assert aligned(odd).data_ptr() % 64 == 0
    assert torch.equal(aligned(odd), odd)
    even = torch.randn(1, 64)
    assert aligned(even) is even
