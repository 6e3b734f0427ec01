"""Messages of the exchange. All travel on the control lane; each may be lost, repeated or overtaken.

*One* proposes, *two* answers, and one's verdict ends it. The settlement is a function of proposal and answer
(`meshmoe.placement.bargain.settle`), computed by both ends; its digest is in the answer, so that ends that would not do
the same do nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from meshmoe.core.ids import NodeId
from meshmoe.core.messages import ByteCount, CallId, Message
from meshmoe.placement.bargain import Lot
from meshmoe.placement.sketch import Sketch

LOTS_MAX = 4096
NAMED_MAX = 32768
"""Experts that a message's lots name as copies that come or go; some of them change owners, too. With at most three
bytes each, a message stays below the 256 KiB that the wire takes."""

BYSTANDERS_MAX = 6
"""Third nodes that one end speaks for at most: each is priced for every lot."""

Version = Annotated[int, Meta(ge=0, lt=1 << 62)]
Price = Annotated[int, Meta(gt=-(1 << 60), lt=1 << 60)]
Lots = Annotated[list[Lot], Meta(max_length=LOTS_MAX)]
Prices = Annotated[list[Price], Meta(max_length=2 * LOTS_MAX)]


class ExchangeProposal(Message, frozen=True, tag="bargain"):
    """What one would do with two.

    Attributes:
        id: Rises with every proposal that one ever made.
        one_version: Of one's plan. Two answers only if it knows that plan: its prices depend on what one holds.
        two_version: Of two's plan, as one knows it. Two answers only if that is its present one.
        lots: On the table.
        prices: One's, for each.
        room_bytes: Free at one.
        cost: One's present cost, in nanoseconds a second.
        sketch_known: Version of two's sketch that one has; 0 without one.
        counted: Third nodes that one's prices speak for.
    """

    id: CallId
    one_version: Version
    two_version: Version
    lots: Lots
    prices: Prices
    room_bytes: ByteCount
    cost: Price
    sketch_known: Version = 0
    counted: Annotated[tuple[NodeId, ...], Meta(max_length=BYSTANDERS_MAX)] = ()


class ExchangeAnswer(Message, frozen=True, tag="bargained"):
    """Two's part. After ``accepted`` two changes nothing until it hears the verdict.

    Attributes:
        id: Of the proposal.
        reply: ``busy``: with another exchange. ``stale``: one end does not know the other's plan. ``refused``: it
            makes no sense here. ``idle``: nothing is worth while.
        lots: That two adds: its own copies only.
        prices: Two's, for one's lots and then for its own.
        room_bytes: Free at two.
        digest: Of the lots that two finds chosen.
        sketch: Two's demand in short, if one does not have it.
    """

    id: CallId
    reply: Literal["accepted", "busy", "stale", "refused", "idle"]
    lots: Lots = msgspec.field(default_factory=list)
    prices: Prices = msgspec.field(default_factory=list)
    room_bytes: ByteCount = 0
    digest: Annotated[bytes, Meta(max_length=16)] = b""
    sketch: Sketch | None = None


class ExchangeVerdict(Message, frozen=True, tag="bargain-end"):
    """One's last word: done, or off. Told again whenever two asks again."""

    id: CallId
    done: bool


EXCHANGE_MESSAGES = (ExchangeProposal, ExchangeAnswer, ExchangeVerdict)

_ENCODER = msgspec.msgpack.Encoder()


def encoded_lots(lots: list[Lot]) -> bytes:
    """Lots as bytes, for digests: equal lots give equal bytes."""
    return _ENCODER.encode(lots)
