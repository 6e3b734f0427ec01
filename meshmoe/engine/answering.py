"""A layer call answered by an engine that has all of its experts."""

from __future__ import annotations

import torch
from torch import Tensor

from meshmoe.engine.engine import Engine
from meshmoe.engine.remote import LayerCall


async def answer_call(engine: Engine, call: LayerCall, *, deadline: float) -> dict[int, Tensor]:
    """Compute a call's experts.

    Args:
        engine: Has them.
        call: What is asked.
        deadline: Of trio's clock; what has not begun by then is refused.

    Returns:
        For each expert ``[its rows, H]``, as `RemoteExperts.compute` has it.
    """
    asked = list(call.rows.items())
    outputs = await engine.compute_experts(call.layer, asked, call.hidden, decode=call.decode, deadline=deadline)
    return dict(zip(call.rows, torch.split(outputs, [len(rows) for _, rows in asked]), strict=True))
