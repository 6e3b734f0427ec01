"""Messages of the gossip protocol. All travel on the control lane.

Entries travel in *deltas*. A `NodeDelta` says of one owner: "these are all its entries with a version in
``(after, upto]`` that still hold". That is what lets a receiver know that it misses nothing up to ``upto``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from meshmoe.core.messages import Generation, Message, NodeName
from meshmoe.gossip.values import VALUE_BYTES_MAX

KEY_MAX = 32
ENTRIES_MAX = 4096
"""Entries in one delta: all keys of an owner with 1,000 layers."""

NODES_MAX = 512
"""Owners in one message; digests of larger meshes are cut into ranges of names."""

Key = Annotated[str, Meta(pattern=r"^[a-z]{1,16}(/[0-9]{1,5})?\Z", max_length=KEY_MAX)]
Version = Annotated[int, Meta(ge=0, lt=1 << 53)]
PositiveVersion = Annotated[int, Meta(ge=1, lt=1 << 53)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One key of one owner at one version; a value of None is a tombstone: the key was removed."""

    key: Key
    version: PositiveVersion
    value: Annotated[bytes, Meta(max_length=VALUE_BYTES_MAX)] | None


class NodeDelta(msgspec.Struct, frozen=True, array_like=True):
    """All entries of one owner that hold, with a version in ``(after, upto]``, ascending by version.

    Attributes:
        node: The owner.
        generation: Its life.
        floor: Tombstones up to this version have been collected by the owner.
        after: Excluded.
        upto: Included.
        entries: May be fewer than the versions in the range, since a later write of a key hides an earlier one.
    """

    node: NodeName
    generation: Generation
    floor: Version
    after: Version
    upto: Version
    entries: Annotated[list[Entry], Meta(max_length=ENTRIES_MAX)]

    def __post_init__(self) -> None:
        """Checked at decoding too."""
        previous = self.after
        for entry in self.entries:
            if not previous < entry.version <= self.upto:
                raise ValueError("versions in a delta must ascend within (after, upto]")
            previous = entry.version


class NodeDigest(msgspec.Struct, frozen=True, array_like=True):
    """How much of one owner's state the sender has: everything up to ``upto``, tombstones above ``floor``."""

    node: NodeName
    generation: Generation
    upto: Version
    floor: Version = 0


Deltas = Annotated[list[NodeDelta], Meta(max_length=NODES_MAX)]
Digests = Annotated[list[NodeDigest], Meta(max_length=NODES_MAX)]


class GossipPush(Message, frozen=True, tag="gossip"):
    """News, unasked or asked for."""

    deltas: Deltas
    relay: bool = True
    """Whether receivers should pass on what is new to them; not if all nodes were told directly."""
    urgent: bool = False
    """Whether to pass it on at once."""


class GossipDigest(Message, frozen=True, tag="digest"):
    """What the sender has, of all owners with ``first <= name < until`` (None: no bound on that side)."""

    digests: Digests
    first: NodeName | None = None
    until: NodeName | None = None

    def covers(self, node: str) -> bool:
        """Whether the sender would have listed ``node`` if it had anything of it."""
        return (self.first is None or self.first <= node) and (self.until is None or node < self.until)


class GossipDelta(Message, frozen=True, tag="delta"):
    """Answer to `GossipDigest`: what you lack, and what I lack of what you have (answered with `GossipPush`)."""

    deltas: Deltas = msgspec.field(default_factory=list)
    wants: Digests = msgspec.field(default_factory=list)
    more: bool = False
    """Whether there was more than fits: ask again soon."""


GOSSIP_MESSAGES = (GossipPush, GossipDigest, GossipDelta)
"""For `meshmoe.wire`, which joins them to its union."""

MESSAGE_OVERHEAD_BYTES = 48
"""Of a message without its lists, tag, version and field names included."""


def entry_bytes(entry: Entry) -> int:
    """An upper estimate of an entry's size in msgpack."""
    return len(entry.key) + len(entry.value or b"") + 14


def delta_overhead_bytes(node: str) -> int:
    """An upper estimate of a delta's size without its entries."""
    return len(node) + 42


def digest_bytes(digest: NodeDigest) -> int:
    """An upper estimate of a digest's size."""
    return len(digest.node) + 30


def delta_bytes(delta: NodeDelta) -> int:
    """An upper estimate of a delta's size."""
    return delta_overhead_bytes(delta.node) + sum(entry_bytes(entry) for entry in delta.entries)


def message_bytes(message: GossipPush | GossipDigest | GossipDelta) -> int:
    """An upper estimate of a message's size in msgpack."""
    size = MESSAGE_OVERHEAD_BYTES
    match message:
        case GossipPush(deltas):
            size += sum(map(delta_bytes, deltas))
        case GossipDigest(digests):
            size += sum(map(digest_bytes, digests)) + 2 * 66
        case GossipDelta(deltas, wants):
            size += sum(map(delta_bytes, deltas)) + sum(map(digest_bytes, wants))
    return size
