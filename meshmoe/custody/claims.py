"""Claims: their order, and what one node keeps about its custody of one expert.

A *claim* is a promise: "I hold this expert's weights and shall not drop them until a greater claim stands". A claim
is made in a *slot*: an expert has one slot for every copy that must outlive a crash, each slot has its own chain of
claims, and claims of different slots are never compared. A claim *stands* from the moment its minter made it until
the minter releases it, renews it by a greater one, or crashes; nobody but the minter can know whether it stands.

The rule by which claims are minted and released is in `meshmoe.custody.rule`; the proof is in
docs/decisions/custody-rule.md.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from msgspec import Meta

from meshmoe.core.ids import NodeId

SLOTS_MAX = 2
"""Slots of an expert, where capacity allows: with two, one crash in a repair window is survived."""

Slot = Annotated[int, Meta(ge=0, lt=SLOTS_MAX)]
Epoch = Annotated[int, Meta(ge=1, lt=1 << 53)]


class Claim(NamedTuple):
    """One promise of one life of one node, in one slot of one expert.

    Claims of a slot are ordered as tuples: by epoch, then by name, then by generation. The epoch of a new claim exceeds
    every epoch that its minter has seen in the slot, so that later claims win wherever news has travelled; where it has
    not, any total order will do, as long as all nodes have the same one.

    Attributes:
        epoch: Grows with every claim of the slot; 0 only in `NO_CLAIM`.
        node: The minter.
        generation: The minter's life: a claim ends with it.
    """

    epoch: int
    node: NodeId
    generation: int


NO_CLAIM = Claim(0, NodeId(""), 0)
"""Less than every claim."""


def stamp_of(slot: int, claim: Claim) -> int:
    """Slot and epoch as the one number that `meshmoe.gossip.Claims` has for an expert; its owner is the minter."""
    return claim.epoch * SLOTS_MAX + slot


def claim_of(stamp: int, node: NodeId, generation: int) -> tuple[int, Claim]:
    """Slot and claim of a gossiped number."""
    epoch, slot = divmod(stamp, SLOTS_MAX)
    return slot, Claim(epoch, node, generation)


class Life(NamedTuple):
    """Who a node is from one start to the next."""

    node: NodeId
    generation: int


class AskId(NamedTuple):
    """Names one question of one life about one expert; the answer repeats it, so that no other question can take it."""

    generation: int
    number: int


class Ask(NamedTuple):
    """The question that a custodian has put to another one, and waits to have answered.

    Attributes:
        id: Names the question.
        slot: The slot asked about.
        peer: Who was asked.
        until_s: Answers that come then or later are not believed: the peer may have crashed meanwhile.
    """

    id: AskId
    slot: int
    peer: NodeId
    until_s: float


class Custody(NamedTuple):
    """What one node keeps about one expert. The empty record is that of a node that has never heard of the expert.

    Attributes:
        resident: Whether the weights are here, verified and ready to compute.
        slot: The slot in which a claim of ours stands; meaningless while ``claim`` is None.
        claim: Our standing claim. At most one, in one slot: two slots on one node would fall in one crash.
        minted: By slot, the greatest epoch that we ever minted; of earlier lives too, where a disk remembers.
        seen: By slot, the greatest claim that we know of, ours or another's, standing or not. It only rises.
        ask: The question that is out.
        asks: How many questions this life has asked.
    """

    resident: bool = False
    slot: int = 0
    claim: Claim | None = None
    minted: tuple[int, ...] = (0,) * SLOTS_MAX
    seen: tuple[Claim, ...] = (NO_CLAIM,) * SLOTS_MAX
    ask: Ask | None = None
    asks: int = 0
