"""How admission is proved: HMAC-SHA256, with a label in front of every use of a key.

    token secret = HMAC(mesh secret, "token", id, expiry) cut to 16 bytes
    proof        = HMAC(token secret, "join", public key, name)

So a token needs no list to be checked against: every member derives its secret anew. The expiry is part of what is
derived, so that nobody can push it back. The proof covers the public key, and CURVE shows that the newcomer has the
private one: what somebody else overhears or is shown proves nothing for another key or another name.
"""

from __future__ import annotations

import hmac
import secrets

from meshmoe.admission.messages import MeshSecret
from meshmoe.core.token import Ticket

REPROVED = bytes(8)
"""The token id of records that no token was needed for: a founder's, and those proved anew after a rotation."""


def new_secret(epoch: int = 1) -> MeshSecret:
    """A fresh mesh secret."""
    return MeshSecret(epoch, secrets.token_bytes(32))


def ticket_of(secret: MeshSecret, token: bytes, expires_s: int) -> Ticket:
    """The ticket that a token id and an expiry have under a mesh secret."""
    return Ticket(token, expires_s, _hmac(secret.secret, b"token", token + expires_s.to_bytes(8, "big"))[:16])


def admission_proof(ticket: Ticket, key: bytes, node: str) -> bytes:
    """What shows that whoever has the private half of ``key`` was given the ticket, and wants to be called ``node``."""
    return _hmac(ticket.secret, b"join", key + node.encode("ascii"))


def is_proof_of(proof: bytes, ticket: Ticket, key: bytes, node: str) -> bool:
    """Whether it is; takes the same time whatever differs."""
    return hmac.compare_digest(proof, admission_proof(ticket, key, node))


def _hmac(key: bytes, label: bytes, content: bytes) -> bytes:
    return hmac.digest(key, b"meshmoe " + label + b"\0" + content, "sha256")
