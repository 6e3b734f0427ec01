"""The transformers families that the tests go through, and the smallest way to run a stripped model."""

from __future__ import annotations

import types
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from meshmoe.core.ids import ExpertId
from meshmoe.model.experts_modules import ExpertsModule, compute_expert, find_experts_modules
from meshmoe.model.loading import load_expert
from meshmoe.model.source import WeightSource
from meshmoe.model.tiny_configs import TINY_FAMILIES

NAMED_FAMILIES = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "phimoe",
    "granitemoe",
    "glm4_moe",
    "ernie4_5_moe",
    "minimax",
)
"""The families that the product names; logits must be the stock model's, bit for bit, in float32."""

OTHER_FAMILIES = tuple(family for family in TINY_FAMILIES if family not in NAMED_FAMILIES)

LOGITS_TOLERANCE = {"llama4_text": 1e-5}
"""Llama 4 multiplies all experts as one batch, zeros included, so sums are rounded in another order."""


def stock_model(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The whole model as transformers loads it, with its plain expert loop, and its parameters in aligned memory.

    As loaded, parameters that need no conversion are views of the mapped file, at whatever address they have there, and
    the matrix kernels round differently for different alignments: dbrx's logits then differ by 6e-7 from its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        auto: Any = AutoModelForCausalLM
        model = auto.from_pretrained(directory, dtype=dtype, experts_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def sample_ids(rows: int = 2, length: int = 24, seed: int = 5) -> Tensor:
    """Token ids that every tiny model has: ``[rows, length]``."""
    return torch.randint(3, 259, (rows, length), generator=torch.Generator().manual_seed(seed))


def install_local_experts(model: nn.Module, source: WeightSource, dtype: torch.dtype | None = None) -> None:
    """Load every expert, one at a time, and let the stripped model compute with them as stock eager does."""
    for experts in find_experts_modules(model):
        weights = [load_expert(source, ExpertId(experts.layer, e), dtype) for e in range(experts.n_experts)]
        if experts.kind == "llama4":
            experts.parent.forward = types.MethodType(_llama4_forward(experts, weights), experts.parent)
        else:
            experts.module.forward = types.MethodType(_routed_forward(experts, weights), experts.module)


def _routed_forward(experts: ExpertsModule, weights: list[dict[str, Tensor]]) -> Any:
    def forward(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        out = torch.zeros_like(hidden)
        for index in top_k_index.unique().tolist():
            # Transposed, so that rows come slot by slot as in the stock loop.
            slot, row = torch.where((top_k_index == index).t())
            x = hidden[row]
            y = compute_expert(module, weights[index], x) if index < experts.n_experts else x
            y = y * top_k_weights[row, slot, None]
            out.index_add_(0, row, y.to(out.dtype))
        return out.view(hidden_states.shape)

    return forward


def _llama4_forward(experts: ExpertsModule, weights: list[dict[str, Tensor]]) -> Any:
    def forward(block: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        hidden = hidden_states.reshape(-1, block.hidden_dim)
        logits = functional.linear(hidden, block.router.weight)
        values, chosen = torch.topk(logits, block.top_k, dim=1)
        scores = torch.sigmoid(values.float()).to(hidden.dtype)
        routed = torch.zeros_like(hidden)
        for index in chosen.unique().tolist():
            row, slot = torch.where(chosen == index)
            y = compute_expert(experts.module, weights[index], hidden[row] * scores[row, slot, None])
            routed.index_add_(0, row, y)
        out: Tensor = block.shared_expert(hidden)
        out.add_(routed)
        return out, logits

    return forward
