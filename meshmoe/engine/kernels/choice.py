"""Which kernel computes an expert: a function of the family, the dtype and the number of rows, and of nothing else.

Every expert that this node computes goes through `compute`, for its own requests and for peers, in prompts and in
decode steps. So two nodes with the same software compute an expert with the same kernel, whoever asks. The compiled
kernel's bits are the same on any CPU (see `primitives`); those of torch, for more rows, are as before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations import moe

from meshmoe.model.experts_modules import ExpertWeights, compute_expert, experts_kind

_log = logging.getLogger(__name__)

_few_rows: Callable[[ExpertWeights, Tensor], Tensor] | None
try:
    from meshmoe.engine.kernels.expert import ROWS_MAX
    from meshmoe.engine.kernels.expert import compute_few_rows as _few_rows
    from meshmoe.engine.kernels.primitives import TAGS
except ImportError as error:  # numba publishes no build for every platform that torch has one for
    ROWS_MAX, TAGS, _few_rows = 0, {}, None
    _log.warning("compiled kernels are not available, torch computes everything: %s", error)


class UnsupportedModelError(Exception):
    """The lean decode path cannot run a model; the message says what is in the way."""


def compiled() -> bool:
    """Whether compiled kernels can be had on this machine at all."""
    return _few_rows is not None


def compute(module: nn.Module, weights: ExpertWeights, x: Tensor) -> Tensor:
    """Compute one expert, before the router's weight is applied.

    Args:
        module: The layer's experts module, stripped or not.
        weights: The expert's tensors, as the pool keeps them.
        x: ``[n, H]``, the rows routed to it, contiguous, in the dtype of the weights.

    Returns:
        ``[n, H]``, in the same dtype.
    """
    if _few_rows is not None and x.shape[0] <= ROWS_MAX and x.dtype in TAGS and is_plain(module):
        return _few_rows(weights, x)
    return compute_expert(module, weights, x)


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
