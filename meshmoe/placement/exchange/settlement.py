"""The settlement as a function of proposal and answer, which both ends compute."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain

import numpy as np

from meshmoe.placement.bargain import Lot, settle
from meshmoe.placement.exchange.messages import LOTS_MAX, NAMED_MAX, ExchangeAnswer, ExchangeProposal, encoded_lots
from meshmoe.placement.policies.base import layer_bytes
from meshmoe.placement.world import ModelShape


def agree(proposal: ExchangeProposal, answer: ExchangeAnswer, shape: ModelShape) -> tuple[list[Lot], int] | None:
    """The chosen lots and their price: of the two messages and nothing else. None if the messages do not fit.

    Lots of the proposal must be plausible already; those of the answer may name what the model has not.
    """
    lots = [*proposal.lots, *answer.lots]
    if len(answer.prices) != len(lots) or not is_plausible(answer.lots, shape):
        return None
    ones = [*proposal.prices, *([0] * len(answer.lots))]
    prices = [a + b for a, b in zip(ones, answer.prices, strict=True)]
    chosen = settle(lots, prices, layer_bytes(shape), (proposal.room_bytes, answer.room_bytes))
    return [lots[i] for i in chosen], sum(prices[i] for i in chosen)


def best_lots(lots: list[Lot], prices: list[int]) -> tuple[list[Lot], list[int]]:
    """As many as a message carries, those with the best prices."""
    best = np.argsort(-np.array(prices), kind="stable")[:LOTS_MAX]
    named = np.cumsum(
        [sum(map(len, (lots[i].one_adds, lots[i].one_drops, lots[i].two_adds, lots[i].two_drops))) for i in best]
    )
    if len(best) == len(lots) and named[-1:].sum() <= NAMED_MAX:
        return lots, prices
    keep = np.sort(best[named <= NAMED_MAX]).tolist()
    return [lots[i] for i in keep], [prices[i] for i in keep]


def digest(lots: list[Lot]) -> bytes:
    """By which the ends know that they would do the same."""
    return hashlib.blake2b(encoded_lots(lots), digest_size=16).digest()


def is_plausible(lots: Sequence[Lot], shape: ModelShape) -> bool:
    """Whether lots speak of layers and experts that may exist."""
    layer = max((lot.layer for lot in lots), default=0)
    parts = chain.from_iterable(
        (lot.to_one, lot.to_two, lot.one_adds, lot.one_drops, lot.two_adds, lot.two_drops) for lot in lots
    )
    return layer < shape.layers and max(chain.from_iterable(parts), default=0) < shape.experts
