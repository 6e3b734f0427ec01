"""Which kernel computes an expert: a function of the family and the dtype, and of nothing else.

Every expert that this node computes goes through `compute`, for its own requests and for peers, in prompts and in
decode steps. So two nodes with the same software compute an expert with the same kernel, whoever asks. A row's bits in
the compiled kernel depend neither on its neighbours nor on the CPU (see `dots`); torch's, for the families that
are left to it, depend on both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations import moe

from meshmoe.model.experts_modules import ExpertWeights, compute_expert, experts_kind

_log = logging.getLogger(__name__)

_compiled: Callable[[ExpertWeights, Tensor], Tensor] | None
_compiled_together: Callable[[Sequence[ExpertWeights], Sequence[Sequence[int]], Tensor], Tensor] | None
_all_finite: Callable[[Tensor], bool] | None
try:
    from meshmoe.engine.kernels.crew import Crew
    from meshmoe.engine.kernels.expert import compute_rows as _compiled
    from meshmoe.engine.kernels.expert import compute_together as _compiled_together
    from meshmoe.engine.kernels.finite import all_finite as _all_finite
    from meshmoe.engine.kernels.primitives import TAGS
except ImportError as error:  # numba publishes no build for every platform that torch has one for
    TAGS, _compiled, _compiled_together, _all_finite = {}, None, None, None
    _log.warning("compiled kernels are not available, torch computes everything: %s", error)


class UnsupportedModelError(Exception):
    """The lean decode path cannot run a model; the message says what is in the way."""


def compiled() -> bool:
    """Whether compiled kernels can be had on this machine at all."""
    return _compiled is not None


def crew_for(dtype: torch.dtype, threads: int) -> AbstractContextManager[object]:
    """Helpers with which the thread that enters this shares its products (see `crew`), where there can be any."""
    if _compiled is None or threads == 1 or dtype not in TAGS:
        return nullcontext()
    return Crew(TAGS[dtype], threads - 1)


def compute(module: nn.Module, weights: ExpertWeights, x: Tensor) -> Tensor:
    """Compute one expert, before the router's weight is applied.

    Args:
        module: The layer's experts module, stripped or not.
        weights: The expert's tensors, as the pool keeps them.
        x: ``[n, H]``, the rows routed to it, contiguous, in the dtype of the weights.

    Returns:
        ``[n, H]``, in the same dtype.
    """
    if weights and on_card(weights):
        from meshmoe.engine.cuda.experts import compute_there  # needs Triton, which comes with CUDA's torch

        return compute_there(weights, x)
    if _compiled is not None and x.dtype in TAGS and is_plain(module):
        return _compiled(weights, x)
    return compute_expert(module, weights, x)


def compute_together(
    module: nn.Module, held: Sequence[ExpertWeights], rows: Sequence[Sequence[int]], hidden: Tensor
) -> Tensor | None:
    """Compute several experts as `compute` does, with less around it: for a decode step's few rows.

    Args:
        module: The layer's experts module.
        held: The experts' weights, of one at least.
        rows: For each of them, the rows of ``hidden`` that it computes.
        hidden: ``[U, H]`` contiguous and aligned, in the dtype of the weights.

    Returns:
        ``[sum of rows, H]``, the outputs one after the other; None where this has to be done by `compute`.
    """
    if on_card(held[0]):
        from meshmoe.engine.cuda.experts import compute_together_there  # see `compute`

        return compute_together_there(held, rows, hidden)
    if _compiled_together is None or hidden.dtype not in TAGS or not is_plain(module):
        return None
    return _compiled_together(held, rows, hidden)


def on_card(weights: ExpertWeights) -> bool:
    """Whether an expert lies on a card."""
    return next(iter(weights.values())).is_cuda


def all_finite(values: Tensor) -> bool:
    """Whether all values of a contiguous tensor on the CPU are finite."""
    return _all_finite(values) if _all_finite is not None else bool(values.isfinite().all())


def is_plain(module: nn.Module) -> bool:
    """Whether the experts of a layer are ``down(silu(gate(x)) * up(x))``, with gate above up in one matrix."""
    m: Any = module
    return (
        experts_kind(module) == "decorated"
        and bool(m.has_gate)
        and not m.has_bias
        and not m.is_transposed
        and not getattr(m, "has_post_expert_norm", False)
        and type(m)._apply_gate is moe._default_apply_gate
        and isinstance(m.act_fn, (nn.SiLU, SiLUActivation))
    )
