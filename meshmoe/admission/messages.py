"""What members tell each other about who belongs to the mesh."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from meshmoe.core.messages import Message, NodeName
from meshmoe.core.token import PublicKey, TokenId, WallClockS

RECORDS_MAX = 512
"""Members of one mesh, dead ones that nobody expelled included."""

TOKENS_MAX = 256
EXPELLED_MAX = 1024
RECORDS_PER_MESSAGE = 256
"""256 records of some 250 bytes are 64 KiB, a quarter of what a message may have."""

WallClockMs = Annotated[int, Meta(ge=0, lt=1 << 50)]
Epoch = Annotated[int, Meta(ge=1, lt=1 << 50)]
Digest32 = Annotated[bytes, Meta(min_length=32, max_length=32)]


class MeshSecret(msgspec.Struct, frozen=True, array_like=True):
    """The secret that every member knows.

    Attributes:
        epoch: Its number; a later one replaces it.
        secret: 32 random bytes.
    """

    epoch: Epoch
    secret: Annotated[bytes, Meta(min_length=32, max_length=32)]

    @property
    def rank(self) -> tuple[int, bytes]:
        """Orders secrets the same way everywhere, also two of one epoch (two members rotated at once)."""
        return self.epoch, hashlib.sha256(b"meshmoe rank" + self.secret).digest()


class AdmissionRecord(msgspec.Struct, frozen=True, array_like=True):
    """That a key belongs to a name in this mesh, with the proof.

    Attributes:
        node: The name.
        key: CURVE25519 public key.
        token: By which token; zeros for the founder and for records proved anew after a rotation.
        expires_s: Of the token, which the proof covers.
        epoch: Of the mesh secret that the proof is made with.
        admitted_ms: Wall clock of the member that let it in; a later admission of a name replaces an earlier one.
        proof: See `meshmoe.admission.proofs`.
    """

    node: NodeName
    key: PublicKey
    token: TokenId
    expires_s: WallClockS
    epoch: Epoch
    admitted_ms: WallClockMs
    proof: Digest32

    @property
    def rank(self) -> tuple[int, bytes, str]:
        """Of two records for one name or one key, the greater one holds."""
        return self.admitted_ms, self.key, self.node


class TokenNote(msgspec.Struct, frozen=True, array_like=True):
    """That a token was issued, for lists and revocation; its secret is not in here.

    Attributes:
        token: Its id.
        epoch: Of the mesh secret that it comes from.
        issued_s: When.
        expires_s: Until when; 0 for ever.
        by: On which node.
        label: What its maker calls it.
        revoked: Whether it admits nobody any more; never taken back.
    """

    token: TokenId
    epoch: Epoch
    issued_s: WallClockS
    expires_s: WallClockS
    by: NodeName
    label: Annotated[str, Meta(max_length=64)] = ""
    revoked: bool = False


class RollDigest(Message, frozen=True, tag="roll?"):
    """A fingerprint of the sender's roll. Control lane, now and then to one member by chance."""

    digest: Digest32


class RollNews(Message, frozen=True, tag="roll"):
    """What the sender's roll has; the answer to a digest that differs, and sent to all at a change. Control lane.

    The secret goes with it, and with the secret always everybody who was expelled: who learns the one learns the other.
    """

    secret: MeshSecret
    expelled: Annotated[list[PublicKey], Meta(max_length=EXPELLED_MAX)]
    records: Annotated[list[AdmissionRecord], Meta(max_length=RECORDS_PER_MESSAGE)]
    tokens: Annotated[list[TokenNote], Meta(max_length=TOKENS_MAX)]


ADMISSION_MESSAGES = (RollDigest, RollNews)
