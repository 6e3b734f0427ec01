"""One layer's experts, wherever they are.

The order within a layer call: group the router's choice, take references to the resident experts' weights, send out one
call for all missing experts, compute the resident ones, then wait for the rest (only if something is missing: an
all-local layer never leaves the thread), and sum.

Exactness. An expert computes exactly its own rows, gathered into fresh memory, here as at a peer: kernels choose their
path by shape and alignment, so that is what makes the bits equal. The sum is stock eager's: each output times its
router weight, rounded to the hidden dtype, added into zeros in ascending order of experts. The router's weights stay
here.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from meshmoe.core.errors import ExpertUnavailableError, PeerError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.job import Call, Job
from meshmoe.engine.kernels.choice import compute, compute_together, on_card
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import LayerCall, RemoteExperts
from meshmoe.engine.request import GenerationStats
from meshmoe.engine.routing import Group, aligned, combine, gather_rows, group_by_expert
from meshmoe.model.experts_modules import ExpertsModule, ExpertWeights

CALL_ROWS_MAX = 8192
"""Tokens in one step at most; peers accept no more in a call."""

TOGETHER_ROWS_MAX = 16
"""A peer's call of so few rows is computed without a look at what is more urgent, if its experts are small, too."""

TOGETHER_BYTES_MAX = 8 << 20
"""Of all weights of such a call: a quarter of a millisecond."""


class LayerRunner(Protocol):
    """What a forward pass calls at each MoE layer."""

    def run(self, experts: ExpertsModule, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Compute a layer's routed experts.

        Args:
            experts: The layer.
            hidden: ``[T, H]``, its input.
            index: ``[T, k]`` integer, the router's choice; from ``experts.n_experts`` on these are identity experts.
            weights: ``[T, k]``, the router's weights.

        Returns:
            ``[T, H]`` in the dtype of ``hidden``.
        """


current_runner: ContextVar[LayerRunner] = ContextVar("current_runner")
"""The runner of the forward pass under way. Each greenlet has a context of its own, so requests do not mix."""


@dataclass(slots=True)
class RequestDispatch:
    """The layer runner of one request.

    Attributes:
        job: The greenlet that runs the forward pass.
        pool: Experts that are resident here.
        remote: The mesh; None on a node without peers.
        stats: Counters of the request.
        counts: Activations of the node.
        decode: Whether the pass is a decode step; the generation loop sets it.
    """

    job: Job
    pool: ExpertPool
    remote: RemoteExperts | None
    stats: GenerationStats
    counts: ActivationCounts
    decode: bool = False
    _chosen: list[NDArray[np.int64] | None] = field(default_factory=list)
    """Of the layers of the pass under way."""

    def run(self, experts: ExpertsModule, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """See `LayerRunner`. Raises `ExpertUnavailableError`, and whatever the mesh raises."""
        self.job.checkpoint()
        layer, stats = experts.layer, self.stats
        self._note(layer, index, experts.n_experts)
        grouping = group_by_expert(index, weights)
        resident: list[tuple[Group, ExpertWeights | None]] = []
        missing: list[Group] = []
        for group in grouping.groups:
            tokens = group.rows.shape[0]
            if group.expert >= experts.n_experts:
                resident.append((group, None))
                continue
            self.counts.add(layer, group.expert, tokens, decode=self.decode)
            held = self.pool.get(ExpertId(layer, group.expert))
            if held is None:
                missing.append(group)
                stats.expert_calls_remote += tokens
            else:
                resident.append((group, held))
                stats.expert_calls_local += tokens
        call = self.send(layer, hidden, missing) if missing else None
        outputs: dict[int, Tensor] = {}
        try:
            for group, held in resident:
                x = gather_rows(hidden, group.rows)
                outputs[group.expert] = x if held is None else compute(experts.module, held, x)
        except BaseException:
            if call is not None:
                call.abandon()
            raise
        if call is not None:
            outputs |= self.receive(call, layer, hidden, missing)
        return combine(hidden, grouping, outputs, accumulate_dtype(experts.module, hidden, weights))

    def _note(self, layer: int, index: Tensor, experts: int) -> None:
        """Keep a layer's choice; the last layer's completes the pass."""
        layers = len(self.counts.decode)
        if layer == 0 or len(self._chosen) != layers:
            self._chosen = [None] * layers
        chosen = index.numpy()
        self._chosen[layer] = np.where(chosen < experts, chosen, -1)
        if layer == layers - 1:
            self.counts.log.add_layers(self._chosen, decode=self.decode)
            self._chosen = []

    def send(self, layer: int, hidden: Tensor, missing: list[Group]) -> Call[dict[int, Tensor]]:
        """Ask the mesh for experts that are not resident.

        Args:
            layer: MoE layer ordinal.
            hidden: ``[T, H]``, the layer's input; must not change until the answer is there.
            missing: What they have to do.
        """
        if self.remote is None:
            named = ", ".join(str(ExpertId(layer, group.expert)) for group in missing)
            raise ExpertUnavailableError(f"not resident, and this node has no peers to ask: experts {named}")
        rows = {group.expert: group.rows.tolist() for group in missing}
        asked = LayerCall(layer, aligned(hidden), rows, self.decode, self.stats)
        return self.job.ask(self.remote, asked)

    def receive(
        self, call: Call[dict[int, Tensor]], layer: int, hidden: Tensor, missing: list[Group]
    ) -> dict[int, Tensor]:
        """Wait for the outputs that `send` asked for, by expert."""
        if self.decode:
            self.stats.decode_rounds += 1
        else:
            self.stats.prefill_rounds += 1
        started = perf_counter()
        replies = call.wait()
        self.stats.remote_wait_s += perf_counter() - started
        for group in missing:
            reply = replies.get(group.expert)
            shape = (len(group.rows), hidden.shape[1])
            if reply is None or reply.shape != shape or reply.dtype != hidden.dtype:
                found = "nothing" if reply is None else f"{tuple(reply.shape)} {reply.dtype}"
                raise PeerError(
                    f"expert {ExpertId(layer, group.expert)}: the mesh answered {found}, not {shape} {hidden.dtype}"
                )
        return replies


def accumulate_dtype(module: nn.Module, hidden: Tensor, weights: Tensor) -> torch.dtype:
    """The dtype that stock eager sums in: the hidden states', but nemotron_h's in the router weights'."""
    return weights.dtype if type(module).__name__ == "NemotronHExperts" else hidden.dtype


def compute_rows(
    job: Job, experts: ExpertsModule, held: list[ExpertWeights], rows: list[list[int]], hidden: Tensor
) -> Tensor:
    """Serve a peer's call: each expert on its own rows, as the peer itself would compute it.

    Args:
        job: The greenlet that runs this.
        experts: The layer.
        held: The weights of the experts, in the order of the answer.
        rows: For each of them, the rows of ``hidden`` that it computes.
        hidden: ``[U, H]``.

    Returns:
        ``[sum of rows, H]``, the experts' outputs one after the other.
    """
    if held and (on_card(held[0]) or _is_little(held, rows)):
        together = compute_together(experts.module, held, rows, hidden)
        if together is not None:
            return together
    outputs = []
    for weights, numbers in zip(held, rows, strict=True):
        job.checkpoint()
        x = gather_rows(hidden, torch.tensor(numbers, dtype=torch.int64))
        outputs.append(compute(experts.module, weights, x))
    return torch.cat(outputs)


def _is_little(held: list[ExpertWeights], rows: list[list[int]]) -> bool:
    weight_bytes = len(held) * sum(tensor.nbytes for tensor in held[0].values())
    return sum(map(len, rows)) <= TOGETHER_ROWS_MAX and weight_bytes <= TOGETHER_BYTES_MAX
