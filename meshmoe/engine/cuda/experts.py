"""One expert on a card for rows on the host: kernel and tiles are those of the node's own forwards, so are the bits."""

from __future__ import annotations

import torch
from torch import Tensor

from meshmoe.engine.cuda.step import compute_pairs
from meshmoe.model.experts_modules import ExpertWeights


def compute_there(weights: ExpertWeights, x: Tensor) -> Tensor:
    """Compute one expert.

    Args:
        weights: Its tensors, on the card.
        x: ``[n, H]``, on the host.

    Returns:
        ``[n, H]``, on the host.
    """
    gate_up, down = weights["gate_up_proj"], weights["down_proj"]
    device, rows = gate_up.device, len(x)
    table = torch.tensor([[gate_up.data_ptr(), down.data_ptr()]], device=device)
    held = torch.zeros(rows, 1, dtype=torch.int32, device=device)
    inner = torch.empty(rows, down.shape[1], dtype=x.dtype, device=device)
    outputs = torch.empty(rows, x.shape[1], dtype=x.dtype, device=device)
    compute_pairs(table, x.to(device), held, inner, outputs)
    return outputs.cpu()
