"""Experts on a card for rows on the host: kernel and tiles are those of the node's own forwards, so are the bits.

A peer's call is one launch for all of its experts, and one wait: what the card is to do goes there without waiting.
Where several processes share a card, each wait has the card change from one to another and back.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from meshmoe.engine.cuda.step import compute_pairs
from meshmoe.engine.cuda.weights import DeviceShape
from meshmoe.model.experts_modules import ExpertWeights

TOGETHER_ROWS_MAX = 256
"""Rows of a call whose experts are computed together: as many as a node reads at once."""

PLACES = (4, 8)
"""Experts that a row may name in one launch; each is a kernel of its own."""


def compute_there(weights: ExpertWeights, x: Tensor) -> Tensor:
    """Compute one expert.

    Args:
        weights: Its tensors, on the card.
        x: ``[n, H]``, on the host.

    Returns:
        ``[n, H]``, on the host.
    """
    device = weights["down_proj"].device
    table = torch.tensor([[weights["gate_up_proj"].data_ptr(), weights["down_proj"].data_ptr()]], device=device)
    held = torch.zeros(len(x), 1, dtype=torch.int32, device=device)
    inner = torch.empty(len(x), weights["down_proj"].shape[1], dtype=x.dtype, device=device)
    outputs = torch.empty(len(x), x.shape[1], dtype=x.dtype, device=device)
    compute_pairs(table, x.to(device), held, inner, outputs)
    return outputs.cpu()


def compute_together_there(
    held: Sequence[ExpertWeights], rows: Sequence[Sequence[int]], hidden: Tensor
) -> Tensor | None:
    """Compute several experts, each on its own rows, in one go.

    Args:
        held: The experts' tensors, on the card; one at least.
        rows: For each of them, the rows of ``hidden`` that it computes.
        hidden: ``[U, H]``, on the host.

    Returns:
        ``[sum of rows, H]`` on the host, one expert's outputs after the other's; None where rows, or experts for one
        row, are so many that they are better computed one expert after the other.
    """
    count, answers = len(hidden), sum(map(len, rows))
    if max(count, len(held)) > TOGETHER_ROWS_MAX or answers > TOGETHER_ROWS_MAX * PLACES[-1]:
        return None
    named: list[list[int]] = [[] for _ in range(count)]
    pairs = []
    for at, numbers in enumerate(rows):
        for row in numbers:
            if not named[row] or named[row][-1] != at:  # a peer may name a row twice
                named[row].append(at)
            pairs.append(row * PLACES[-1] + len(named[row]) - 1)
    most = max(map(len, named))
    if most > PLACES[-1]:
        return None
    places = next(size for size in PLACES if size >= most)
    down = held[0]["down_proj"]
    desk = _desks.of(down.device, hidden.dtype, hidden.shape[1], down.shape[1])
    return desk.serve(held, named, places, pairs, hidden)


class _Desk:
    """Memory of a thread for calls: what goes to the card, and what comes back, in one piece each.

    The host's side is pinned: copies from other memory wait for the card.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, hidden: int, width: int) -> None:
        rows, pairs = TOGETHER_ROWS_MAX, TOGETHER_ROWS_MAX * PLACES[-1]
        sizes = (rows * 16, pairs * 8, pairs * 4, rows * hidden * dtype.itemsize)
        self._begins = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
        self._here = torch.empty(self._begins[-1], dtype=torch.uint8, pin_memory=True)
        self._there = torch.empty(self._begins[-1], dtype=torch.uint8, device=device)
        self._dtypes = (torch.int64, torch.int64, torch.int32, dtype)
        self._inner = torch.empty(pairs, width, dtype=dtype, device=device)
        self._outputs = torch.empty(pairs, hidden, dtype=dtype, device=device)
        self._answers = torch.empty(pairs, hidden, dtype=dtype, device=device)
        self._answers_here = torch.empty(pairs, hidden, dtype=dtype, pin_memory=True)

    def serve(
        self,
        held: Sequence[ExpertWeights],
        named: Sequence[Sequence[int]],
        places: int,
        pairs: Sequence[int],
        hidden: Tensor,
    ) -> Tensor:
        """See `compute_together_there`; a pair is a row times the most places, plus the place."""
        addresses = [(weights["gate_up_proj"].data_ptr(), weights["down_proj"].data_ptr()) for weights in held]
        chosen = [[*experts, *[-1] * (places - len(experts))] for experts in named]
        most = PLACES[-1]
        where = [pair // most * places + pair % most for pair in pairs]
        parts = (torch.tensor(addresses), torch.tensor(where), torch.tensor(chosen, dtype=torch.int32), hidden)
        table, numbers, taking, x = (self._stage(at, part) for at, part in enumerate(parts))
        used = taking.numel()
        compute_pairs(table, x, taking, self._inner[:used], self._outputs[:used])
        answers, here = self._answers[: len(pairs)], self._answers_here[: len(pairs)]
        torch.index_select(self._outputs[:used], 0, numbers, out=answers)
        here.copy_(answers, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return here.clone()

    def _stage(self, at: int, part: Tensor) -> Tensor:
        """Send a part on its way; returns it on the card."""
        begin, dtype = self._begins[at], self._dtypes[at]
        span = slice(begin, begin + part.nbytes)
        here, there = self._here[span].view(dtype).view(part.shape), self._there[span].view(dtype).view(part.shape)
        here.copy_(part)
        return there.copy_(here, non_blocking=True)


class _Desks(threading.local):
    """Those of the thread that looks."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.device, torch.dtype, int, int], _Desk] = {}

    def of(self, device: torch.device, dtype: torch.dtype, hidden: int, width: int) -> _Desk:
        key = device, dtype, hidden, width
        desk = self._known.get(key)
        if desk is None:
            desk = self._known[key] = _Desk(*key)
        return desk


_desks = _Desks()


def warm_experts(shape: DeviceShape, dtype: torch.dtype, device: torch.device) -> None:
    """Compile what calls of peers need, so that none of them waits for it."""
    for places in PLACES:
        table = torch.zeros(1, 2, dtype=torch.int64, device=device)
        nothing = torch.full((1, places), -1, dtype=torch.int32, device=device)
        inner = torch.empty(places, shape.width, dtype=dtype, device=device)
        outputs = torch.empty(places, shape.hidden, dtype=dtype, device=device)
        compute_pairs(table, torch.zeros(1, shape.hidden, dtype=dtype, device=device), nothing, inner, outputs)
