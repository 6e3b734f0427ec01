"""Names of things: nodes and experts.

A node is known by its *name*, which a person chooses and which survives restarts, and by its *generation*, which grows
at every start (milliseconds of wall clock), so that news of an earlier life never hides news of the present one.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NewType

from meshmoe.core.errors import ConfigError

NodeId = NewType("NodeId", str)
"""A node's name: lower-case letters, digits, dot, dash, underscore; at most 63 characters."""

_NODE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


def node_id(name: str) -> NodeId:
    """Validate a node's name.

    Args:
        name: What the user or a peer calls the node.

    Returns:
        The same text, as a ``NodeId``.

    Raises:
        ConfigError: The name has other characters or is too long.
    """
    if not _NODE_NAME.match(name):
        raise ConfigError(
            f"node name {name!r} is not usable: start with a-z or 0-9, go on with a-z 0-9 . _ -, at most 63 characters"
        )
    return NodeId(name)


class ExpertId(NamedTuple):
    """One routed expert of the model.

    Attributes:
        layer: Ordinal of the MoE layer, counting only layers that have routed experts, from 0.
        index: Ordinal of the expert within its layer, from 0.
    """

    layer: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on an expert

    def __str__(self) -> str:
        return f"{self.layer}/{self.index}"
