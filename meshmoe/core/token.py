"""Join tokens: what a newcomer needs to be let into a mesh, as one word to copy.

A token names a node of the mesh (its addresses and its public key, so that nobody in between can pose as it) and
carries a secret that the mesh derives from its own (see `meshmoe.admission.proofs`). Whoever has the word may join
until it expires or is revoked: it is a key, not an address.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from meshmoe.core.errors import ConfigError

PREFIX = "mm1-"
TOKEN_CHARACTERS_MAX = 4096

PublicKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
TokenId = Annotated[bytes, Meta(min_length=8, max_length=8)]
WallClockS = Annotated[int, Meta(ge=0, lt=1 << 40)]
Address = tuple[Annotated[str, Meta(min_length=1, max_length=253)], Annotated[int, Meta(ge=1, le=65535)]]


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """The part of a token that admits.

    Attributes:
        token: Names it, for lists and revocation.
        expires_s: Seconds since 1970; 0 for never.
        secret: Known to whoever has the word, and to every member, who can derive it.
    """

    token: TokenId
    expires_s: WallClockS
    secret: Annotated[bytes, Meta(min_length=16, max_length=16)]


class JoinToken(msgspec.Struct, frozen=True, array_like=True):
    """The content of a token.

    Attributes:
        addresses: Hosts and control ports of one node, best first.
        key: That node's public key.
        ticket: What admits.
    """

    addresses: Annotated[list[Address], Meta(min_length=1, max_length=16)]
    key: PublicKey
    ticket: Ticket

    def encode(self) -> str:
        """The token as one word."""
        data = base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")
        return PREFIX + data


class Contact(NamedTuple):
    """A node to join through.

    Attributes:
        addresses: To try, in order.
        key: Its public key; None where only an address is known.
        ticket: What admits; None where the user gave none.
    """

    addresses: tuple[tuple[str, int], ...]
    key: bytes | None = None
    ticket: Ticket | None = None


def decode_token(text: str) -> JoinToken:
    """Read a token.

    Raises:
        ConfigError: It is damaged or of a later kind.
    """
    try:
        if not text.startswith(PREFIX) or len(text) > TOKEN_CHARACTERS_MAX:
            raise ValueError
        data = text.removeprefix(PREFIX)
        return msgspec.msgpack.decode(base64.b64decode(data + "=" * (-len(data) % 4), b"-_", True), type=JoinToken)
    except (msgspec.MsgspecError, ValueError, binascii.Error):
        # No more of it than the prefix: it may be a real secret, cut short.
        raise ConfigError(
            f"--peer: {text[:8]!r}... is not a join token: copy the whole word that the other node printed"
        ) from None


def parse_peer(text: str) -> Contact:
    """Read what ``--peer`` was given: ``HOST:PORT``, ``[V6]:PORT``, or a token.

    Raises:
        ConfigError: It is neither.
    """
    if text.startswith(PREFIX):
        token = decode_token(text)
        return Contact(tuple((host, port) for host, port in token.addresses), token.key, token.ticket)
    return Contact((parse_address(text, "--peer"),))


def parse_address(text: str, flag: str, *, port_min: int = 1) -> tuple[str, int]:
    """Read ``HOST:PORT`` or ``[V6]:PORT``.

    Args:
        text: What the user wrote.
        flag: Where, for the message.
        port_min: 0 where "any free port" makes sense.

    Raises:
        ConfigError: It is not an address.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    good_host = bool(host) and len(host) <= 253 and not any(c.isspace() or c == "/" for c in host)
    if not colon or not good_host or (":" in host and not bracketed) or not port.isascii() or not port.isdigit():
        raise ConfigError(f"{flag}: {text!r} is not an address: write it like 192.168.1.20:9700")
    if not port_min <= int(port) <= 65535:
        raise ConfigError(f"{flag}: port {port} is out of range: use {port_min} to 65535")
    return host, int(port)
