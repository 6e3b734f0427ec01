"""What the people of a mesh may decide about who belongs to it, for the local socket."""

from __future__ import annotations

import msgspec

from meshmoe.core.errors import RequestError
from meshmoe.core.ids import NodeId
from meshmoe.node.admission_driver import AdmissionDriver


class TokenStatus(msgspec.Struct, kw_only=True):
    """A token that was issued.

    Attributes:
        id: Names it in lists and for revocation.
        label: What its maker calls it.
        by: The node on which it was made.
        issued_s: When, seconds since 1970.
        expires_s: Until when; 0 for ever.
        revoked: Whether it admits nobody any more.
        word: The token itself; only when it was just made.
    """

    id: str
    label: str
    by: str
    issued_s: int
    expires_s: int
    revoked: bool
    word: str | None = None


class MeshKeeper:
    """Tokens, expulsion, and the secret; every member can do all of it."""

    def __init__(self, admission: AdmissionDriver, addresses: list[tuple[str, int]]) -> None:
        self._admission = admission
        self._addresses = addresses

    def tokens(self) -> list[TokenStatus]:
        """Those that this node has heard of, oldest first."""
        return [
            TokenStatus(
                id=note.token.hex(),
                label=note.label,
                by=note.by,
                issued_s=note.issued_s,
                expires_s=note.expires_s,
                revoked=note.revoked,
            )
            for note in self._admission.roll.tokens
        ]

    def new_token(self, lifetime_s: int, label: str) -> TokenStatus:
        """Make one that lets people in for so long; 0 for ever."""
        ticket = self._admission.new_ticket(lifetime_s, label)
        made = next(token for token in self.tokens() if token.id == ticket.token.hex())
        return msgspec.structs.replace(made, word=self._admission.word(ticket, self._addresses))

    def revoke_token(self, token: str) -> None:
        """Let nobody in by it any more.

        Raises:
            RequestError: There is no such token, or several begin like this.
        """
        found = [status.id for status in self.tokens() if status.id.startswith(token.lower())]
        if len(found) != 1:
            problem = "several tokens begin with" if found else "there is no token"
            raise RequestError(f"{problem} {token!r}: `meshmoe token list` shows them", http_status=404)
        self._admission.revoke(bytes.fromhex(found[0]))

    def rotate_secret(self) -> None:
        """Give the mesh a new secret; members stay, tokens of before admit nobody any more."""
        self._admission.rotate()

    async def expel(self, node: str) -> None:
        """Strike a member out for good.

        Raises:
            RequestError: There is no such member, or it is this node.
        """
        await self._admission.expel(NodeId(node))
