"""Join tokens: what a newcomer needs to find a mesh, as one word to copy.

A node that listens on several addresses prints a token instead of an address, so that the newcomer can try each of
them. The token also names the model that the mesh serves, for people and tools that compare it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import msgspec
from msgspec import Meta

from meshmoe.core.errors import ConfigError
from meshmoe.core.messages import Digest

PREFIX = "mm1-"
TOKEN_CHARACTERS_MAX = 4096

Address = tuple[Annotated[str, Meta(min_length=1, max_length=253)], Annotated[int, Meta(ge=1, le=65535)]]


class JoinToken(msgspec.Struct, frozen=True, array_like=True):
    """The content of a token.

    Attributes:
        addresses: Hosts and control ports of one node, best first.
        model_digest: Of the model that the mesh serves, if it was known.
    """

    addresses: Annotated[list[Address], Meta(min_length=1, max_length=16)]
    model_digest: Digest | None = None

    def encode(self) -> str:
        """The token as one word."""
        data = base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")
        return PREFIX + data


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
        raise ConfigError(
            f"--peer: {text[:24]!r} is not a join token: copy the whole word that the other node printed"
        ) from None


def parse_peer(text: str) -> list[tuple[str, int]]:
    """Read what ``--peer`` was given: ``HOST:PORT``, ``[V6]:PORT``, or a token.

    Returns:
        Addresses to try, in order.

    Raises:
        ConfigError: It is neither.
    """
    if text.startswith(PREFIX):
        return [(host, port) for host, port in decode_token(text).addresses]
    return [parse_address(text, "--peer")]


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
