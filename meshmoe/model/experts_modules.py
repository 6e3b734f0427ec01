"""The modules of a transformers model that hold routed experts, found by class and never by path.

Four kinds exist in transformers 5 (DESIGN.md, fact 7):

- *decorated*: the class carries ``@use_experts_implementation``; flags on the module (``has_gate``, ``has_bias``,
  ``is_transposed``, ``has_post_expert_norm``) and its ``_apply_gate`` say how one expert computes. 65 of 73 classes.
- *undecorated*: the same ``forward(hidden_states, top_k_index, top_k_weights)`` and the same parameters, without the
  decorator (longcat_flash, step3p7).
- *dbrx*: all experts of a layer stacked along the first axis of three matrices in a submodule.
- *llama4*: experts that get tokens already scaled and sorted, one batch row an expert.

A module with the routed experts' parameters removed is *stripped*: it stays in the model, keeps its flags, activation
and norms, and ``compute_expert`` computes with weights that come from elsewhere.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows it by
from torch import nn

ExpertWeights = dict[str, torch.Tensor]
"""One expert's tensors by parameter name, without the expert axis, in the layout that the model computes with."""

ExpertsKind = Literal["decorated", "undecorated", "dbrx", "llama4"]

_STACKED_NAMES = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "up_proj_bias", "down_proj", "down_proj_bias")
_DBRX_NAMES = ("mlp.w1", "mlp.v1", "mlp.w2")
_ROUTED_FORWARD = ("self", "hidden_states", "top_k_index", "top_k_weights")


@dataclass(frozen=True, slots=True)
class ExpertsModule:
    """One layer's routed experts within a model.

    Attributes:
        layer: Ordinal of the MoE layer, as in ``ExpertId.layer``.
        name: Module path, such as ``model.layers.3.mlp.experts``.
        module: The module itself.
        parent: The module that calls it: the MoE block with router and shared experts.
        kind: How its experts compute; see the top of this file.
        n_experts: Routed experts; indices from ``n_experts`` on are identity experts (longcat_flash).
        top_k: Experts a token is routed to, where the block says so.
    """

    layer: int
    name: str
    module: nn.Module
    parent: nn.Module
    kind: ExpertsKind
    n_experts: int
    top_k: int | None

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The experts' parameters that the module still has, relative to it; empty once stripped."""
        names = _DBRX_NAMES if self.kind == "dbrx" else _STACKED_NAMES
        return tuple(name for name in names if _parameter(self.module, name) is not None)


def experts_kind(module: nn.Module) -> ExpertsKind | None:
    """Tell whether ``module`` holds routed experts, and of which kind; None for any other module."""
    cls: Any = type(module)
    if not cls.__name__.endswith("Experts"):
        return None
    if cls.__name__ == "DbrxExperts":
        return "dbrx"
    if cls.__name__ == "Llama4TextExperts":
        return "llama4"
    if hasattr(module, "is_transposed") and hasattr(module, "has_gate"):
        return "decorated"
    return "undecorated" if _has_routed_forward(cls) and hasattr(module, "down_proj") else None


def find_experts_modules(model: nn.Module) -> tuple[ExpertsModule, ...]:
    """Find every layer's routed experts, in the model's own order, stripped or not."""
    found: list[ExpertsModule] = []
    for name, module in model.named_modules():
        kind = experts_kind(module)
        if kind is None:
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        found.append(ExpertsModule(len(found), name, module, parent, kind, _n_experts(module), _top_k(parent)))
    return tuple(found)


def strip_experts(model: nn.Module) -> tuple[ExpertsModule, ...]:
    """Remove the parameters of all routed experts from ``model``; the modules stay.

    Returns:
        What ``find_experts_modules`` finds, for whoever installs another forward.
    """
    modules = find_experts_modules(model)
    for experts in modules:
        for name in experts.parameter_names:
            path, _, leaf = name.rpartition(".")
            owner: Any = experts.module.get_submodule(path)
            # None, not a deleted attribute: code that asks for the parameter still finds the name.
            owner.register_parameter(leaf, None)
            # Nothing is left to initialise in it, and transformers would stumble over the None.
            owner._is_hf_initialized = True
    return modules


def compute_expert(module: nn.Module, weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Compute one expert as the stock eager forward does, before the router's weight is applied.

    Args:
        module: The layer's experts module, stripped or not (``ExpertsModule.module``).
        weights: The expert's tensors as ``load_expert`` returns them.
        x: ``[n, H]``, the rows routed to this expert, in the weights' dtype.

    Returns:
        ``[n, H]``, in the same dtype.
    """
    m: Any = module
    kind = experts_kind(module)
    if kind == "dbrx":
        result: torch.Tensor = m.mlp(x, weights["mlp.w1"], weights["mlp.v1"], weights["mlp.w2"])
        return result
    if kind == "llama4":
        gate, up = (x @ weights["gate_up_proj"]).chunk(2, dim=-1)
        activated: torch.Tensor = up * m.act_fn(gate)
        return activated @ weights["down_proj"]
    has_gate, has_bias = getattr(m, "has_gate", True), getattr(m, "has_bias", False)
    transposed, up_name = getattr(m, "is_transposed", False), "gate_up_proj" if has_gate else "up_proj"
    hidden = x @ weights[up_name] if transposed else F.linear(x, weights[up_name])
    if has_bias:
        hidden = hidden + weights[up_name + "_bias"]
    hidden = _apply_gate(m, hidden) if has_gate else m.act_fn(hidden)
    out = hidden @ weights["down_proj"] if transposed else F.linear(hidden, weights["down_proj"])
    if has_bias:
        out = out + weights["down_proj_bias"]
    if getattr(m, "has_post_expert_norm", False):
        out = m.post_expert_norm(out)
    return out


@functools.cache
def _has_routed_forward(cls: Any) -> bool:
    """Shared experts stacked along an axis (inkling) have other arguments: they are trunk."""
    return tuple(inspect.signature(cls.forward).parameters) == _ROUTED_FORWARD


def _apply_gate(module: Any, gate_up: torch.Tensor) -> torch.Tensor:
    if hasattr(module, "_apply_gate"):
        gated: torch.Tensor = module._apply_gate(gate_up)
        return gated
    gate, up = gate_up.chunk(2, dim=-1)
    activated: torch.Tensor = module.act_fn(gate) * up
    return activated


def _parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path)._parameters.get(leaf)


def _n_experts(module: nn.Module) -> int:
    count = getattr(module, "num_routed_experts", None)
    return int(count if count is not None else module.num_experts)  # type: ignore[arg-type]


def _top_k(parent: nn.Module) -> int | None:
    """Look for ``top_k`` on the MoE block and on its router, where every family keeps it under one of these names."""
    for owner in _with_children(parent):
        for name in ("top_k", "num_experts_per_tok", "top_k_experts"):
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
    return None


def _with_children(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    yield from module.children()
