"""Point a transformers model's expert modules at the current layer runner: one function for every family.

Decorated families take it from transformers' own registry, under the name ``meshmoe``. Families without the decorator
get the same function bound on the instance. Llama 4 scales an expert's input by the router's weight instead of its
output, and gets its block's forward replaced.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from meshmoe.engine.dispatch import current_runner
from meshmoe.model.experts_modules import ExpertsModule, find_experts_modules

IMPLEMENTATION = "meshmoe"


def bind_experts(trunk: nn.Module) -> tuple[ExpertsModule, ...]:
    """Make every MoE layer of ``trunk`` call `current_runner`.

    Args:
        trunk: A stripped transformers model.

    Returns:
        The MoE layers, in the model's order.
    """
    layers = find_experts_modules(trunk)
    for experts in layers:
        module: Any = experts.module
        module.meshmoe = experts
        if experts.kind == "decorated":
            module.config._experts_implementation = IMPLEMENTATION
        elif experts.kind == "llama4":
            experts.parent.forward = types.MethodType(_llama4_block, experts.parent)
        else:
            module.forward = types.MethodType(_routed_experts, module)
    return layers


def _routed_experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
    out = current_runner.get().run(module.meshmoe, hidden, top_k_index, top_k_weights)
    return out.view(hidden_states.shape)


def _llama4_block(block: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Llama4TextMoe.forward without the experts that it would compute on zeros."""
    hidden = hidden_states.reshape(-1, block.hidden_dim)
    logits = functional.linear(hidden, block.router.weight)
    values, chosen = torch.topk(logits, block.top_k, dim=1)
    scores = torch.sigmoid(values.float()).to(hidden.dtype)
    scaled = (hidden.unsqueeze(1) * scores.unsqueeze(-1)).reshape(-1, block.hidden_dim)
    ones = torch.ones(chosen.numel(), 1, dtype=hidden.dtype)
    routed = current_runner.get().run(block.experts.meshmoe, scaled, chosen.reshape(-1, 1), ones)
    out: Tensor = block.shared_expert(hidden)
    out.add_(routed.view(hidden.shape[0], block.top_k, -1).sum(dim=1))
    return out, logits


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _routed_experts)
