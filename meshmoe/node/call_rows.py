"""Rows of an expert call: which go out, and whether what came back is what was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meshmoe.core.errors import WireError
from meshmoe.core.ids import NodeId
from meshmoe.engine.kernels.choice import all_finite
from meshmoe.wire.codec import Decoded
from meshmoe.wire.frames import TensorFrame
from meshmoe.wire.messages import ExpertRows
from meshmoe.wire.tensors import pack_rows, pack_tensor, unpack_tensor

REPLY_HEADER_BYTES = 48
"""Bytes of a reply besides its tensor, for the statistics."""


def row_bytes(hidden: Tensor) -> int:
    """Bytes that a row moves, there and back."""
    return 2 * hidden.shape[1] * hidden.element_size()


def rows_to_send(hidden: Tensor, rows: dict[int, list[int]]) -> tuple[TensorFrame, list[ExpertRows]]:
    """The rows that some expert needs, each once, and every expert's rows renumbered to them.

    Args:
        hidden: ``[T, H]`` contiguous.
        rows: For each expert its rows of ``hidden``.

    Returns:
        ``[U, H]`` as it travels, and what goes into the message.
    """
    if hidden.shape[0] == 1:
        return pack_tensor(hidden), [ExpertRows(expert, []) for expert in sorted(rows)]
    distinct = sorted({row for numbers in rows.values() for row in numbers})
    position = {row: i for i, row in enumerate(distinct)}
    everything = list(range(len(distinct)))
    wanted = []
    for expert, numbers in sorted(rows.items()):
        renumbered = [position[row] for row in numbers]
        wanted.append(ExpertRows(expert, [] if renumbered == everything else renumbered))
    if len(distinct) == hidden.shape[0]:
        return pack_tensor(hidden), wanted
    packed = pack_tensor(hidden)
    if type(packed.data) is not bytes:
        return pack_tensor(hidden[torch.tensor(distinct)]), wanted
    size_bytes = len(packed.data) // hidden.shape[0]
    parts = [packed.data[row * size_bytes : (row + 1) * size_bytes] for row in distinct]
    return pack_rows(hidden.dtype, len(distinct), b"".join(parts)), wanted


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
