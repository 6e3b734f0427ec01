"""The name under which a connection introduces itself: ``lane/generation/connection/node`` as its ZeroMQ routing id.

The lane is in it so that a connection to the wrong port is caught. The generation is in it so that a restarted node is
a new identity, heard at once while its former life's connections are still being noticed as dead. The connection's
number is in it for the same reason within a life: when a second connection of the same identity takes over (see
ROUTER_HANDOVER in `meshmoe.transport.zmq_knobs`), libzmq throws away what the first had delivered and nobody had yet
received.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import NodeId

_NUMBER_MAX = (1 << 63) - 1
# At most 1 + 1 + 19 + 1 + 19 + 1 + 63 = 105 bytes; ZeroMQ allows 255 and a first byte other than zero.
_IDENTITY = re.compile(rb"([0-2])/(0|[1-9][0-9]{0,18})/(0|[1-9][0-9]{0,18})/([a-z0-9][a-z0-9._-]{0,62})\Z")


class Identity(NamedTuple):
    """Who is at the other end of a connection, by its own word."""

    lane: Lane
    generation: int
    connection: int
    node: NodeId


def identity_bytes(identity: Identity) -> bytes:
    """The routing id of ``identity``."""
    return b"%d/%d/%d/%b" % (*identity[:3], identity.node.encode("ascii"))


def parse_identity(routing_id: bytes) -> Identity | None:
    """Read a routing id; None if it is not one of ours (ZeroMQ makes up binary ones for sockets that set none)."""
    match = _IDENTITY.match(routing_id)
    if match is None:
        return None
    generation, connection = int(match[2]), int(match[3])
    if max(generation, connection) > _NUMBER_MAX:
        return None
    return Identity(Lane(int(match[1])), generation, connection, NodeId(match[4].decode("ascii")))
