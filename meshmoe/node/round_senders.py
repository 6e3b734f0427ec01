"""Who sends under which name, as compiled code knows it.

Nobody is let in here: a sender gets into the tables when a message of its has passed all checks of the transport, and
out of them when it would not any more. What compiled code does not know goes through those checks, message by message.
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from meshmoe.core.ids import NodeId
from meshmoe.engine.rounds.tables import KEY_BYTES_MAX, NAME_BYTES_MAX, SENDERS_MAX, Office, Post, Sender
from meshmoe.node.offences import Offences
from meshmoe.transport.base import DirectLane


class _Known(NamedTuple):
    """Who sends under a name."""

    node: NodeId
    key: bytes
    slot: int


def fits(name: bytes, key: bytes) -> bool:
    """Whether the tables have room for a name and a key so long."""
    return len(name) <= NAME_BYTES_MAX and len(key) <= KEY_BYTES_MAX


class RoundSenders:
    """See the module; belongs to the compute thread."""

    def __init__(self, post: Post, lane: DirectLane, offences: Offences) -> None:
        """Nobody is known.

        Args:
            post: The tables.
            lane: The data lane; has the checks.
            offences: Say who is not listened to.
        """
        self._post = post
        self._lane = lane
        self._offences = offences
        self._clock = trio.lowlevel.current_clock()
        self._known: dict[bytes, _Known] = {}

    def admit(self, name: bytes, key: bytes, node: NodeId, slot: int) -> None:
        """What comes under this name and with this key is a node's.

        Args:
            name: Of the connection.
            key: That it has proved; both `fits`.
            node: Whose it is.
            slot: The node's row among peers, for as long as it is not forgotten here.
        """
        if len(self._known) >= SENDERS_MAX:
            self._known.clear()
        self._known[name] = _Known(node, key, slot)
        self._write()

    def forget(self, node: NodeId) -> None:
        """Nothing is this node's any more."""
        self._drop([name for name, known in self._known.items() if known.node == node])

    def tell(self) -> None:
        """Forget those whose messages would not pass any more."""
        now_s = self._clock.current_time()
        self._drop(
            [
                name
                for name, known in self._known.items()
                if self._offences.is_banned(known.node, now_s) or not self._lane.still(name, known.key, known.node)
            ]
        )

    def _drop(self, gone: list[bytes]) -> None:
        for name in gone:
            del self._known[name]
        if gone:
            self._write()

    def _write(self) -> None:
        post = self._post
        for at, (name, known) in enumerate(self._known.items()):
            post.names[at, : len(name)] = bytearray(name)
            post.keys[at, : len(known.key)] = bytearray(known.key)
            row = post.senders[at]
            row[Sender.NAME_BYTES], row[Sender.KEY_BYTES] = len(name), len(known.key)
            row[Sender.PEER] = known.slot
        post.numbers[Office.SENDERS] = len(self._known)
