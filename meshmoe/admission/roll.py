"""The roll of a mesh as one node has it: see the package's text for the rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from meshmoe.admission.messages import (
    EXPELLED_MAX,
    RECORDS_MAX,
    RECORDS_PER_MESSAGE,
    TOKENS_MAX,
    AdmissionRecord,
    MeshSecret,
    RollNews,
    TokenNote,
)
from meshmoe.admission.proofs import REPROVED, admission_proof, is_proof_of, new_secret, ticket_of
from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.core.token import Ticket

EPOCHS_AHEAD_MAX = 64
"""How far ahead a secret may be that news bring: a bad member must not use up all numbers at once."""


class SecretStaleError(Exception):
    """The sender of news has not heard of the present secret: tell it, and take nothing from it."""


class RollState(msgspec.Struct, frozen=True, array_like=True):
    """What a node keeps on disk of its mesh: the roll, and where members were met last, for coming back to them."""

    secret: MeshSecret
    records: list[AdmissionRecord] = []
    expelled: list[bytes] = []
    tokens: list[TokenNote] = []
    contacts: list[tuple[NodeId, Endpoints]] = []


class Roll:
    """Who belongs to the mesh. Plain state without any I/O; `changes` grows whenever it changes."""

    def __init__(self, state: RollState, heard_now: Callable[[NodeId], bool] = lambda _: False) -> None:
        """Take up what was kept.

        Args:
            state: From disk, or with nothing but a secret.
            heard_now: Whether a member is connected under its present key; that key is then not replaced.
        """
        self._secret = state.secret
        self._records: dict[NodeId, AdmissionRecord] = {NodeId(record.node): record for record in state.records}
        self._expelled: dict[bytes, None] = dict.fromkeys(state.expelled)
        self._tokens: dict[bytes, TokenNote] = {note.token: note for note in state.tokens}
        self.contacts = dict(state.contacts)
        self.heard_now = heard_now
        self.changes = 0

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def secret(self) -> MeshSecret:
        """The present secret."""
        return self._secret

    @property
    def records(self) -> dict[NodeId, AdmissionRecord]:
        """Members by name; not to be changed."""
        return self._records

    @property
    def tokens(self) -> list[TokenNote]:
        """Tokens that were issued, oldest first."""
        return sorted(self._tokens.values(), key=lambda note: (note.issued_s, note.token))

    @property
    def state(self) -> RollState:
        """For the disk."""
        contacts = sorted(self.contacts.items())
        return RollState(self._secret, list(self._records.values()), list(self._expelled), self.tokens, contacts)

    def is_expelled(self, key: bytes) -> bool:
        """Whether this key is out for good."""
        return key in self._expelled

    def digest(self) -> bytes:
        """Equal on two nodes whose rolls are."""
        told = [[r.node, r.key, r.admitted_ms] for r in sorted(self._records.values(), key=lambda r: r.node)]
        # Of tokens only the revoked ones: the others are forgotten when they expire, by clocks that differ.
        revoked = sorted(note.token for note in self._tokens.values() if note.revoked)
        content = (self._secret.rank, told, sorted(self._expelled), revoked)
        return hashlib.sha256(msgspec.msgpack.encode(content)).digest()

    def news(self) -> Iterator[RollNews]:
        """All of it, in as many messages as it takes."""
        left = iter(self._records.values())
        tokens, records = self.tokens, list(islice(left, RECORDS_PER_MESSAGE))
        while True:
            yield RollNews(secret=self._secret, expelled=list(self._expelled), records=records, tokens=tokens)
            tokens, records = [], list(islice(left, RECORDS_PER_MESSAGE))
            if not records:
                return

    def objection(self, ticket: Ticket, now_s: float) -> str | None:
        """Why a token admits nobody, in words; None when it does. The proof is checked by `admit`."""
        note = self._tokens.get(ticket.token)
        if note is not None and note.revoked:
            return "its token was revoked: make a new one with `meshmoe token new`"
        if ticket.token == REPROVED:
            return "its token is none that a mesh gives out"
        if ticket.expires_s and ticket.expires_s < now_s:
            return "its token has expired: make a new one with `meshmoe token new`"
        return None

    # -- changing -----------------------------------------------------------------------------------------------------

    def admit(self, record: AdmissionRecord) -> str | None:
        """Take in a newcomer or a record of another member.

        Returns:
            Why not, in words; None when the roll now has it (or already had).
        """
        node = NodeId(record.node)
        if record.key in self._expelled:
            return "it was expelled from the mesh"
        known = self._records.get(node)
        if known is not None and known.key == record.key and known.admitted_ms >= record.admitted_ms:
            return None
        if record.epoch != self._secret.epoch or not self._proves(record):
            return "its proof is not one of this mesh (was the secret rotated since its token was made?)"
        if known is not None and known.key != record.key:
            if known.rank >= record.rank:
                return f"the name {node} was given to another key later"
            if self.heard_now(node):
                return f"a node named {node} is in the mesh already: choose another with --name"
        elsewhere = next((r for r in self._records.values() if r.key == record.key and r.node != node), None)
        if elsewhere is not None:
            if elsewhere.rank >= record.rank:
                return f"its key belongs to {elsewhere.node}"
            del self._records[NodeId(elsewhere.node)]
        elif known is None and len(self._records) >= RECORDS_MAX:
            return f"the mesh has {RECORDS_MAX} members already"
        self._records[node] = record
        self.changes += 1
        return None

    def admit_without_token(self, node: NodeId, key: bytes, now_ms: int) -> None:
        """Enter the founder of a mesh, or a member of it that was forgotten; the secret itself is what it shows."""
        known = self._records.pop(node, None)
        admitted_ms = max(now_ms, known.admitted_ms + 1 if known is not None else 0)
        record = AdmissionRecord(node, key, REPROVED, 0, self._secret.epoch, admitted_ms, bytes(32))
        self._records[node] = self._proved(record)
        self.changes += 1

    def merge(self, news: RollNews) -> None:
        """Take in what another member's roll has.

        Raises:
            SecretStaleError: The sender's secret is an earlier one; nothing was taken but who was expelled.
        """
        for key in news.expelled:
            self._expel_key(key)
        if news.secret.rank > self._secret.rank and news.secret.epoch <= self._secret.epoch + EPOCHS_AHEAD_MAX:
            self.adopt(news.secret)
        if news.secret != self._secret:
            raise SecretStaleError
        for record in news.records:
            self.admit(record)
        for note in news.tokens:
            self.note_token(note)

    def adopt(self, secret: MeshSecret) -> None:
        """Go over to another secret, proving every record anew under it."""
        self._secret = secret
        self._records = {node: self._proved(record) for node, record in self._records.items()}
        self._tokens = {token: note for token, note in self._tokens.items() if note.epoch == secret.epoch}
        self.changes += 1

    def rotate(self) -> None:
        """Make a new secret; tokens of before admit nobody any more."""
        self.adopt(new_secret(self._secret.epoch + 1))

    def expel(self, node: NodeId) -> bytes | None:
        """Strike a member out for good, and change the secret that it knows.

        Returns:
            Its key; None if there is no such member, or too many were expelled already.
        """
        record = self._records.get(node)
        if record is None or len(self._expelled) >= EXPELLED_MAX:
            return None
        self._expel_key(record.key)
        self.rotate()
        return record.key

    def note_token(self, note: TokenNote) -> None:
        """Take in that a token was issued or revoked."""
        known = self._tokens.get(note.token)
        if note.epoch != self._secret.epoch or (known is not None and (known.revoked or not note.revoked)):
            return
        if known is None and len(self._tokens) >= TOKENS_MAX:
            # The oldest that is not revoked goes from the list (it still admits until it expires).
            spare = [n for n in self.tokens if not n.revoked] or self.tokens
            del self._tokens[spare[0].token]
        self._tokens[note.token] = note
        self.changes += 1

    def forget_expired_tokens(self, now_s: float) -> None:
        """Drop from the list what admits nobody any more by itself, an hour after it expired (clocks differ)."""
        for note in self.tokens:
            if not note.revoked and note.expires_s and note.expires_s + 3600 < now_s:
                del self._tokens[note.token]

    def _expel_key(self, key: bytes) -> None:
        if key in self._expelled or len(self._expelled) >= EXPELLED_MAX:
            return
        self._expelled[key] = None
        for node in [node for node, record in self._records.items() if record.key == key]:
            del self._records[node]
        self.changes += 1

    def _proves(self, record: AdmissionRecord) -> bool:
        ticket = ticket_of(self._secret, record.token, record.expires_s)
        return is_proof_of(record.proof, ticket, record.key, record.node)

    def _proved(self, record: AdmissionRecord) -> AdmissionRecord:
        """The same record, proved under the present secret; the same bytes on every node."""
        proof = admission_proof(ticket_of(self._secret, REPROVED, 0), record.key, record.node)
        return msgspec.structs.replace(record, token=REPROVED, expires_s=0, epoch=self._secret.epoch, proof=proof)
