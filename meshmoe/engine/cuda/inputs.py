"""What a step on a card is to read."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

ALSO_MAX = 32
"""Forks a row, on average, that may read it, too."""


class StepInputs:
    """What a step is to read, on the card and, pinned, on the host; sent in one piece.

    Attributes:
        tokens, positions, local, tables, also_from, also: See `DecodeStep`; on the card.
        here: The same on the host, in the same order, as NumPy arrays.
    """

    def __init__(self, rows: int, blocks: int, device: torch.device) -> None:
        shapes: tuple[tuple[int, ...], ...] = (rows,), (rows,), (rows, blocks), (rows + 1,), (rows * ALSO_MAX,)
        numbers = _aligned(2 * rows) + sum(_aligned(math.prod(shape)) for shape in shapes)
        self._there = torch.zeros(numbers, dtype=torch.int32, device=device)
        self._here = torch.zeros(numbers, dtype=torch.int32, pin_memory=True)
        there, here = self._views(self._there, rows, shapes), self._views(self._here, rows, shapes)
        self.tokens, self.positions, self.local, self.tables, self.also_from, self.also = there
        self.here = tuple(view.numpy() for view in here)

    def send(self) -> None:
        """Have the card read what stands in ``here``, without waiting; it must not change before the step's end."""
        self._there.copy_(self._here, non_blocking=True)

    @staticmethod
    def _views(memory: Tensor, rows: int, shapes: Iterable[tuple[int, ...]]) -> list[Tensor]:
        views, at = [memory[: 2 * rows].view(torch.int64)], _aligned(2 * rows)
        for shape in shapes:
            views.append(memory[at : at + math.prod(shape)].view(shape))
            at += _aligned(math.prod(shape))
        return views


def _aligned(numbers: int) -> int:
    """So many int32 that the next array begins at a multiple of 16 bytes, for which kernels are compiled."""
    return -(-numbers // 4) * 4
