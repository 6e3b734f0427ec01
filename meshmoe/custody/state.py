"""What custody keeps on disk, and what must be there before what is sent.

The file holds the life's generation and, for each expert and slot, the greatest epoch that this node ever minted, and
whether that claim stood. Write-ahead: the file is on disk

- before anything is sent in a new life, because a generation must never be used twice;
- before a claim is published or answered with, because a node's claims only rise (invariant S4).

No expert's safety hangs on it: a node whose disk is lost or damaged rejoins empty, as the exhaustive check allows it
to. A release need not be written before anything: a claim that the file wrongly shows as standing only lets the next
life load that expert first.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from meshmoe.core.errors import CheckpointError
from meshmoe.core.ids import ExpertId
from meshmoe.core.messages import Digest, ExpertIndex, Generation, LayerIndex, NodeName
from meshmoe.custody.claims import SLOTS_MAX, Epoch, Slot

_MAGIC = b"meshmoe custody 1\n"
_DIGEST_BYTES = 20


class MintedClaim(msgspec.Struct, frozen=True, array_like=True):
    """The last claim that this node minted for one expert in one slot; five bytes mostly."""

    index: ExpertIndex
    slot: Slot
    epoch: Epoch
    standing: bool


class CustodyState(msgspec.Struct, frozen=True, array_like=True):
    """The file's contents.

    Attributes:
        model_digest: Of the model that the claims speak of.
        node: Whose claims they are.
        generation: The last life that wrote.
        layers: Claims minted, by layer.
    """

    model_digest: Digest
    node: NodeName
    generation: Generation
    layers: dict[LayerIndex, Annotated[list[MintedClaim], Meta(max_length=65_536 * SLOTS_MAX)]] = {}

    def encode(self) -> bytes:
        """The file: a line that names the format, a digest of the rest, the rest."""
        body = msgspec.msgpack.encode(self)
        return _MAGIC + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() + body

    def claims(self) -> dict[ExpertId, list[MintedClaim]]:
        """By expert."""
        found: dict[ExpertId, list[MintedClaim]] = {}
        for layer, minted in self.layers.items():
            for claim in minted:
                found.setdefault(ExpertId(layer, claim.index), []).append(claim)
        return found


def decode_state(data: bytes) -> CustodyState:
    """Read the file of an earlier life; see `check_state`.

    Args:
        data: All of the file.

    Raises:
        CheckpointError: The file is damaged; the node then starts without it.
    """
    body = data[len(_MAGIC) + _DIGEST_BYTES :]
    digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
    if data[: len(_MAGIC) + _DIGEST_BYTES] != _MAGIC + digest:
        raise CheckpointError("the custody state is damaged: this node rejoins without its earlier claims")
    try:
        return msgspec.msgpack.decode(body, type=CustodyState)
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"the custody state cannot be read ({error}): rejoining without it") from error


def check_state(state: CustodyState, *, model_digest: str, node: str) -> None:
    """Check that a state is this node's, for this model.

    Args:
        state: As read.
        model_digest: Of the model that the mesh serves.
        node: This node's name.

    Raises:
        CheckpointError: It is another model's or node's; the node then starts without it.
    """
    if state.model_digest != model_digest:
        raise CheckpointError(
            f"the custody state is of another model ({state.model_digest[:12]}): rejoining without it"
        )
    if state.node != node:
        raise CheckpointError(f"the custody state is of another node ({state.node}): rejoining without it")


def next_generation(state: CustodyState | None, wall_ms: int) -> int:
    """The generation of a life that begins now: wall-clock milliseconds, but above that of the last life on disk.

    A box without a battery-backed clock may wake up in the past.
    """
    return wall_ms if state is None else max(wall_ms, state.generation + 1)
