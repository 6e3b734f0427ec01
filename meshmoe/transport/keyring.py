"""Which keys belong to which node: what the transport needs to know of admission.

CURVE proves which key is at the other end of a connection. The keyring says which node that is, and with which key a
node is to be called. Whoever decides about admission (`meshmoe.node.admission_driver`) keeps it up to date; the
transport reads it at every handshake and for every parcel, so that a key that is taken out is out at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import zmq
from zmq.utils import z85

from meshmoe.core.ids import NodeId

KEY_BYTES = 32


class KeyPair(NamedTuple):
    """A CURVE25519 key pair, raw bytes."""

    public: bytes
    secret: bytes


def new_key_pair() -> KeyPair:
    """A fresh one from libzmq's random source."""
    public, secret = zmq.curve_keypair()
    return KeyPair(z85.decode(public), z85.decode(secret))


class Keyring:
    """See the module's text. Belongs to the trio thread."""

    def __init__(self, own: KeyPair) -> None:
        self.own = own
        self._node_of: dict[str, NodeId] = {}
        self._key_of: dict[NodeId, bytes] = {}
        self._banned_until_s: dict[str, float] = {}
        self._listeners: list[Callable[[NodeId], None]] = []

    def on_change(self, listener: Callable[[NodeId], None]) -> None:
        """Call ``listener`` with each name whose key is another one now, or none."""
        self._listeners.append(listener)

    def assign(self, members: dict[NodeId, bytes]) -> None:
        """These are all members from now on; placeholders stay (see `expect`)."""
        before = {node: key for node, key in self._key_of.items() if not node.startswith("@")}
        waiting = {node: key for node, key in self._key_of.items() if node.startswith("@")}
        self._node_of = {key.hex(): node for node, key in members.items()}
        self._key_of = {**waiting, **members}
        for node in before.keys() | members.keys():
            if before.get(node) != members.get(node):
                self._tell(node)

    def expect(self, placeholder: NodeId, key: bytes) -> None:
        """Connections to ``placeholder`` (whose name starts with ``@``) shall find this key; it admits nobody."""
        self._key_of[placeholder] = key

    def forget(self, placeholder: NodeId) -> None:
        """Undo `expect`."""
        self._key_of.pop(placeholder, None)

    @property
    def members(self) -> list[NodeId]:
        """Names that are admitted."""
        return list(self._node_of.values())

    def key_of(self, node: NodeId) -> bytes | None:
        """The key that must answer for ``node``; None as long as none is known."""
        return self._key_of.get(node)

    def node_of(self, user: str) -> NodeId | None:
        """Whose key it is (in hex digits); None for a key that is not admitted."""
        return self._node_of.get(user)

    def ban(self, user: str, until_s: float) -> None:
        """Refuse connections of this key until then (trio's clock), and drop what its present ones bring."""
        if len(self._banned_until_s) >= 4096:
            self._banned_until_s.clear()
        self._banned_until_s[user] = until_s

    def is_banned(self, user: str, now_s: float) -> bool:
        """Whether a ban is in force."""
        until_s = self._banned_until_s.get(user) if self._banned_until_s else None
        if until_s is None:
            return False
        if now_s < until_s:
            return True
        self._banned_until_s.pop(user, None)  # another thread may have done so meanwhile
        return False

    def _tell(self, node: NodeId) -> None:
        for listener in self._listeners:
            listener(node)
