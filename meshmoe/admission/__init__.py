"""Admission: which public keys belong to this mesh, and under which names.

Every node has a key pair, and the transport tells which key a message came from. The mesh has a secret, which every
member knows. A *token* carries a secret derived from it; a newcomer shows its key, its name and a *proof* made with the
token's secret. The member that lets it in writes a *record* (name, key, proof), and records travel to all members; each
checks the proof for itself before it accepts the key. `Roll` is the set of records of one node, merged like this:

- One key a name, one name a key; the later admission wins, but never over a key that is being heard right now.
- An expelled key stays out for good.
- The secret is numbered by *epoch*. A new one comes with `Roll.rotate`; every member then proves all records that it
  holds anew under it, all in the same way, so that rolls stay equal without a word. What was proved under an earlier
  secret is not accepted any more: tokens of before the rotation, and newcomers of those who were not told the new one.

Members are trusted with the secret: one that turns bad can let others in and expel; it cannot speak under another
member's name. Expelling changes the secret for that reason. See docs/security.md.
"""

from meshmoe.admission.messages import (
    ADMISSION_MESSAGES,
    AdmissionRecord,
    MeshSecret,
    RollDigest,
    RollNews,
    TokenNote,
)
from meshmoe.admission.proofs import admission_proof, is_proof_of, new_secret, ticket_of
from meshmoe.admission.roll import Roll, RollState, SecretStaleError

__all__ = [
    "ADMISSION_MESSAGES",
    "AdmissionRecord",
    "MeshSecret",
    "Roll",
    "RollDigest",
    "RollNews",
    "RollState",
    "SecretStaleError",
    "TokenNote",
    "admission_proof",
    "is_proof_of",
    "new_secret",
    "ticket_of",
]
