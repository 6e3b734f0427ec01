"""The seam between the compute thread and the mesh: expert calls out, and nothing else.

The engine knows no peers. At a layer that needs experts which are not resident it hands a `LayerCall` to the
`RemoteExperts` it was given; the mesh side picks holders, sends, retries, and answers with the outputs of every expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from meshmoe.engine.request import GenerationStats
from meshmoe.wire.frames import Frame
from meshmoe.wire.tensors import RowsInMemory


class LayerCall(NamedTuple):
    """The experts of one layer that a request needs from elsewhere.

    Attributes:
        layer: MoE layer ordinal.
        hidden: ``[T, H]``, the layer's input for all tokens of the step, in the model's dtype, contiguous, on the CPU.
            It may be overwritten once nobody waits for the call any more: whoever needs it longer copies it (`kept`).
        rows: For each missing expert (ascending), the rows of ``hidden`` routed to it, in canonical order.
        decode: Whether this is a decode step (someone waits for this token) or prefill.
        stats: The request's counters; the mesh side adds bytes and retries.
        take: On the compute thread, while somebody waits: puts the outputs of some of the experts, rows one after the
            other in the dtype of ``hidden``, where they belong. Returns False, with no harm done, if it does not take
            them: there are too many rows, or values that are not finite. What was taken is not in the result.
        memory: Where ``hidden`` lies, if it is small.
    """

    layer: int
    hidden: Tensor
    rows: dict[int, list[int]]
    decode: bool
    stats: GenerationStats
    take: Callable[[Sequence[int], Frame], bool] | None = None
    memory: RowsInMemory | None = None

    def kept(self) -> LayerCall:
        """The same call for another thread: with hidden states of its own, and the outputs all in the result."""
        return self._replace(hidden=self.hidden.clone(), take=None, memory=None)


class LittleCall(NamedTuple):
    """What a peer asks for at one layer: a few rows, computed where they are received.

    Attributes:
        experts: The experts, each with its rows of the hidden states; none are all of them.
        rows: How many rows the hidden states have.
        data: The hidden states, in the model's dtype.
    """

    experts: Sequence[tuple[int, Sequence[int]]]
    rows: int
    data: Frame


class RemoteExperts(Protocol):
    """What the mesh offers to the engine; called on the trio thread."""

    async def compute(self, call: LayerCall) -> dict[int, Tensor]:
        """Compute every expert of ``call`` somewhere; the result maps expert index to ``[len(rows), H]``.

        Cancelled when the request is. Raises `ExpertUnavailableError` when an expert cannot be had, with its name.
        """
        ...
