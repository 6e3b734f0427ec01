"""Spot checks: a sample of what peers compute is computed once more by another holder, and compared.

A peer that answers wrong numbers of the right shape cannot be told from an honest one by looking at them. With
``meshmoe join --spot-check RATE`` that share of the answers is asked for again elsewhere, beside the work, one at a
time. A difference says that one of the two is wrong, not which: both are named in the log and counted; who appears in
several pairs is the one to expel. Honest nodes agree to the last bit where they run the same kernels, so a difference
in the last bits alone is counted apart.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import torch
import trio
from torch import Tensor

from meshmoe.core.errors import PeerError
from meshmoe.core.ids import ExpertId, NodeId

logger = logging.getLogger(__name__)

SPOT_CHECK_S_MAX = 10.0

CLOSE = 0.02
"""Of the largest value: what other kernels or another dtype's rounding may make of the same numbers."""

Recompute = Callable[[NodeId, ExpertId, Tensor], Awaitable[Tensor]]
"""Ask a peer for one expert's outputs of some rows."""


class SpotChecks:
    """See the module's text. Belongs to the trio thread."""

    def __init__(self, rate: float, rng: Random) -> None:
        self._rate = rate
        self._rng = rng
        self._busy = False
        self.made = 0
        self.differing_bits = 0
        self.disagreements = 0
        self.recompute: Recompute | None = None
        self.spawn: Callable[[Callable[[], Awaitable[None]]], None] | None = None

    def maybe(self, expert: ExpertId, rows: Tensor, answer: Tensor, peer: NodeId, others: Sequence[NodeId]) -> None:
        """Perhaps have an answer checked.

        Args:
            expert: Whose outputs they are.
            rows: ``[n, H]``, what it was given.
            answer: ``[n, H]``, what ``peer`` made of it.
            peer: Who computed it.
            others: Other holders.
        """
        if not self._rate or self._busy or self.spawn is None or not others or self._rng.random() >= self._rate:
            return
        self._busy = True
        # Copies: the request goes on with these tensors.
        checked, given, other = answer.clone(), rows.clone(), self._rng.choice(list(others))

        async def check() -> None:
            try:
                await self._check(expert, given, checked, peer, other)
            finally:
                self._busy = False

        self.spawn(check)

    async def _check(self, expert: ExpertId, rows: Tensor, answer: Tensor, peer: NodeId, other: NodeId) -> None:
        assert self.recompute is not None
        try:
            with trio.fail_after(SPOT_CHECK_S_MAX):
                again = await self.recompute(other, expert, rows)
        except (PeerError, trio.TooSlowError):
            return  # no answer is no disagreement; dispatch finds out about such peers by itself
        self.made += 1
        if torch.equal(again, answer):
            return
        scale = float(answer.abs().max())
        if again.shape == answer.shape and float((again.float() - answer.float()).abs().max()) <= CLOSE * scale:
            self.differing_bits += 1
            return
        self.disagreements += 1
        logger.warning("spot check: %s and %s disagree on expert %s: one of them computes wrongly", peer, other, expert)
