"""Rows of an expert call: which go out, and whether what came back is what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from meshmoe.core.errors import WireError
from meshmoe.core.ids import NodeId
from meshmoe.engine.kernels.choice import all_finite
from meshmoe.wire.codec import Decoded
from meshmoe.wire.frames import TensorFrame
from meshmoe.wire.messages import ExpertRows
from meshmoe.wire.tensors import RowsInMemory, pack_tensor, unpack_tensor

REPLY_HEADER_BYTES = 48
"""Bytes of a reply besides its tensor, for the statistics."""


def row_bytes(hidden: Tensor) -> int:
    """Bytes that a row moves, there and back."""
    return 2 * hidden.shape[1] * hidden.element_size()


def rows_to_send(
    hidden: Tensor, rows: Mapping[int, Sequence[int]], memory: RowsInMemory | None = None
) -> tuple[TensorFrame, list[ExpertRows]]:
    """The rows that some expert needs, each once, and every expert's rows renumbered to them.

    Args:
        hidden: ``[T, H]`` contiguous.
        rows: For each expert its rows of ``hidden``, ascending.
        memory: Where ``hidden`` lies, if it is small.

    Returns:
        ``[U, H]`` as it travels, and what goes into the message.
    """
    experts = sorted(rows)
    distinct = sorted({row for numbers in rows.values() for row in numbers})
    count, wanted = len(distinct), []
    position: dict[int, int] = {}
    for expert in experts:
        numbers = rows[expert]
        if len(numbers) == count:  # all of them
            wanted.append(ExpertRows(expert, []))
        else:
            position = position or {row: i for i, row in enumerate(distinct)}
            wanted.append(ExpertRows(expert, [position[row] for row in numbers]))
    if memory is not None:
        return memory.frame(distinct), wanted
    if count == hidden.shape[0]:
        return pack_tensor(hidden), wanted
    return pack_tensor(hidden[torch.tensor(distinct)]), wanted


def read_outputs(decoded: Decoded, peer: NodeId, counts: Sequence[int], hidden: Tensor) -> list[Tensor]:
    """The outputs in a reply, expert by expert.

    Args:
        decoded: An `ExpertReply`.
        peer: Who sent it.
        counts: Rows of each expert, in the order of the call.
        hidden: ``[T, H]``, what the call was about.

    Raises:
        WireError: The reply does not answer the call.
    """
    if decoded.tensor is None:
        raise WireError(f"reply from {peer} has no tensor")
    outputs = unpack_tensor(decoded.tensor)
    if outputs.shape != (sum(counts), hidden.shape[1]) or outputs.dtype != hidden.dtype:
        raise WireError(f"reply from {peer} is {list(outputs.shape)} {outputs.dtype}, not what was asked for")
    if not all_finite(outputs):
        raise WireError(f"reply from {peer} has values that are no numbers, or infinite")
    if len(counts) == 1:
        return [outputs]
    return list(outputs.split_with_sizes(list(counts)))
