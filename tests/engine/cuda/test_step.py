"""The CUDA step against stock transformers, against itself in a batch, and with experts away. Needs an NVIDIA card."""

from __future__ import annotations

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device on this machine", allow_module_level=True)

from meshmoe.engine.cuda.blocks import DeviceBlocks
from meshmoe.engine.cuda.step import DecodeStep, Missing, compute_pairs
from meshmoe.engine.cuda.weights import DeviceWeights, lend_experts, read_weights
from meshmoe.engine.lean.blocks import Sequence

CONTEXT, TOKENS = 1024, 300  # over a split of attention

EVERYWHERE = {}
"""The addresses of all experts, by model."""


@pytest.fixture(params=[(family, dtype) for family in ("qwen3_moe", "mixtral") for dtype in ("float32", "bfloat16")])
def model(request):
    family, dtype = request.param
    torch.manual_seed(0)
    shape = {
        "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 1024, "max_position_embeddings": 2048, "num_experts_per_tok": 4,
    }  # fmt: skip
    if family == "mixtral":
        found = MixtralForCausalLM(MixtralConfig(**shape, intermediate_size=192, num_local_experts=8))
    else:
        config = Qwen3MoeConfig(**shape, num_experts=32, moe_intermediate_size=96, head_dim=64, norm_topk_prob=True)
        found = Qwen3MoeForCausalLM(config)
    for parameter in found.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.08)
    found.set_experts_implementation("eager")
    with torch.no_grad():
        yield found.to("cuda", getattr(torch, dtype)).eval()


def read(weights: DeviceWeights, blocks: DeviceBlocks, step: DecodeStep, ids, row=0, local=False):
    """Feed a text token by token in one row of a step; returns the logits after each, and how often a layer waited."""
    logits, rounds, sequence = [], 0, Sequence(blocks)
    step.local[row] = local
    for position, token in enumerate(ids):
        sequence.reserve(1)
        step.tables[row, : len(sequence.table)] = torch.from_numpy(sequence.table)
        step.tokens[row], step.positions[row] = token, position
        sequence.length += 1
        missing = step.run()
        while missing is not None:
            rounds += 1
            missing = step.resume(missing, outputs_of(weights, missing))
        logits.append(step.logits[row].clone())
    sequence.close()
    return torch.stack(logits), rounds


def outputs_of(weights: DeviceWeights, missing: Missing):
    """What a peer that has all experts answers: each row alone, from a pool in another order."""
    shape, found = weights.shape, []
    for expert, row in zip(missing.experts.tolist(), missing.rows.tolist(), strict=True):
        held = torch.tensor([[expert]], dtype=torch.int32, device="cuda")
        inner = torch.empty(1, shape.width, dtype=weights.dtype, device="cuda")
        output = torch.empty(1, shape.hidden, dtype=weights.dtype, device="cuda")
        compute_pairs(
            EVERYWHERE[id(weights)][missing.layer],
            missing.hidden[row : row + 1].contiguous(),
            held,
            inner,
            output,
        )
        found.append(output[0])
    return torch.stack(found)


def test_tokens_batches_and_absent_experts(model):
    weights = read_weights(model, torch.device("cuda"))
    lend_experts(weights, model)
    EVERYWHERE[id(weights)] = weights.experts.clone()
    cache = DeviceBlocks(weights, 64 << 20)
    ids = torch.randint(0, 1024, (TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    alone, _ = read(weights, cache, DecodeStep(weights, cache, 1, CONTEXT), ids)
    stock = model(input_ids=torch.tensor([ids], device="cuda")).logits[0]
    if weights.dtype == torch.float32:
        assert (alone.argmax(-1) == stock.argmax(-1)).all()
        torch.testing.assert_close(alone, stock, rtol=1e-4, atol=1e-4)
    else:
        assert (alone.argmax(-1) == stock.argmax(-1)).float().mean() > 0.8, "random weights, coarse rounding: near ties"

    batch = DecodeStep(weights, cache, 16, CONTEXT)
    for row in range(16):
        batch.tokens[row], batch.positions[row] = row * 7, row * 6
        other = Sequence(cache)
        other.reserve(100)
        batch.tables[row, : len(other.table)] = torch.from_numpy(other.table)
    among_others, _ = read(weights, cache, batch, ids, row=5)
    assert (among_others == alone).all(), "bits do not depend on the batch"

    weights.experts[torch.rand(weights.experts.shape[:2]) < 0.3] = 0
    scattered, rounds = read(weights, cache, DecodeStep(weights, cache, 1, CONTEXT), ids[:60])
    assert rounds > 60
    assert (scattered == alone[:60]).all(), "bits do not depend on where experts are"

    drafted, rounds = read(weights, cache, DecodeStep(weights, cache, 1, CONTEXT), ids[:60], local=True)
    assert rounds == 0
    assert drafted.isfinite().all()
    assert not (drafted == alone[:60]).all()
    weights.experts.zero_()
    assert read(weights, cache, DecodeStep(weights, cache, 1, CONTEXT), ids[:5], local=True)[0].isfinite().all()
