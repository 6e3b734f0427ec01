"""What nodes tell about themselves: one typed struct for each kind of entry, and its key.

A node's state is several entries, so that a change sends only what changed: a load report does not drag along the
holdings, one migrated expert sends one layer's bitmap. Kinds that exist once a layer have the layer in their key.
Values travel as msgpack bytes inside entries: relays pass them on unopened, their size is known exactly, and a key of
a later software version does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.messages import ByteCount, Digest, LayerIndex, NodeName, ShortText
from meshmoe.gossip.packing import RATES, pack_bitmap, pack_numbers, pack_rate, unpack_bitmap, unpack_numbers

VALUE_BYTES_MAX = 8192
"""Of one entry: a bitmap of the 65,536 experts that a layer may have at most."""

LINKS_MAX = 256

Micros = Annotated[int, Meta(ge=0, lt=1 << 40)]
PerSecond = Annotated[int, Meta(ge=0, lt=1 << 50)]
Bitmap = Annotated[bytes, Meta(max_length=8192)]


class NodeInfo(msgspec.Struct, frozen=True, array_like=True):
    """What a node is; changes seldom. Key ``node``."""

    state: Literal["starting", "serving", "leaving"]
    endpoints: Endpoints
    software: ShortText
    model_digest: Digest | None = None
    capacity_bytes: ByteCount = 0
    """What it offers for routed experts."""
    expert_call_us: Micros = 0
    """Measured time to compute one expert for one row; 0 when not yet measured."""
    expert_rows_per_s: PerSecond = 0
    """Measured rows a second through one expert in a large batch."""
    api_address: ShortText | None = None
    """Where its HTTP API listens, if beyond the box."""
    stores_model: bool = False
    """Whether it has all of the model's files on disk, so that any unit can be fetched from it."""


class Load(msgspec.Struct, frozen=True, array_like=True):
    """How busy and how full a node is; changes all the time. Key ``load``."""

    free_bytes: ByteCount
    """Of its capacity, not occupied or reserved."""
    expert_bytes_held: ByteCount
    queue_calls: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    """Expert calls that wait."""
    queue_us: Micros = 0
    """How long a call that arrives now would wait."""


class Link(msgspec.Struct, frozen=True, array_like=True):
    """One measured link from the entry's owner."""

    peer: NodeName
    rtt_us: Micros
    rate_bytes_per_s: PerSecond = 0
    """From real transfers; 0 when there were none."""


class Links(msgspec.Struct, frozen=True, array_like=True):
    """A node's measured links. Key ``links``."""

    links: Annotated[list[Link], Meta(max_length=LINKS_MAX)]


class Agreement(msgspec.Struct, frozen=True, array_like=True):
    """The digest of the holder map that a node sees. Key ``agreement``; published by the gossip machine itself."""

    digest: Annotated[bytes, Meta(min_length=16, max_length=16)]


class Holdings(msgspec.Struct, frozen=True, array_like=True):
    """The experts of one layer that are resident at a node. Key ``holdings/<layer>``."""

    layer: LayerIndex
    resident: Bitmap

    @classmethod
    def of(cls, layer: int, indices: Iterable[int]) -> Holdings:
        """From expert indices."""
        return cls(layer, pack_bitmap(indices))

    def indices(self) -> list[int]:
        """Ascending."""
        return list(unpack_bitmap(self.resident))


class Claims(msgspec.Struct, frozen=True, array_like=True):
    """The claims that a node has minted for experts of one layer. Key ``claims/<layer>``."""

    layer: LayerIndex
    claimed: Bitmap
    epochs: Annotated[bytes, Meta(max_length=8192)]
    """LEB128, one number for each bit of ``claimed``."""

    @classmethod
    def of(cls, layer: int, epoch_of: Mapping[int, int]) -> Claims:
        """From the epoch of each claimed expert."""
        indices = sorted(epoch_of)
        return cls(layer, pack_bitmap(indices), pack_numbers(epoch_of[index] for index in indices))

    def epoch_of(self) -> dict[int, int]:
        """The epoch of each claimed expert.

        Raises:
            ValueError: The two fields do not fit together.
        """
        return dict(zip(unpack_bitmap(self.claimed), unpack_numbers(self.epochs), strict=True))


class Demand(msgspec.Struct, frozen=True, array_like=True):
    """Decayed rates at which a node's own requests call the experts of one layer. Key ``demand/<layer>``."""

    layer: LayerIndex
    rates: Annotated[bytes, Meta(max_length=8192)]
    """One byte an expert (see `meshmoe.gossip.packing`), trailing zeros cut off."""

    @classmethod
    def of(cls, layer: int, rates_per_s: Iterable[float]) -> Demand:
        """From the rate of each expert, in calls a second."""
        return cls(layer, bytes(pack_rate(rate) for rate in rates_per_s).rstrip(b"\0"))

    def rates_per_s(self) -> list[float]:
        """As quantised; experts beyond the end have none."""
        return [RATES[byte] for byte in self.rates]


class PlanStamp(msgspec.Struct, frozen=True, array_like=True):
    """Which plan a node has: its layers (`Planned`) travel apart, and together give this digest. Key ``plan``."""

    version: Annotated[int, Meta(ge=0, lt=1 << 62)]
    digest: Annotated[bytes, Meta(min_length=16, max_length=16)]
    quiet: bool = False
    """Whether the node knows of no exchange that would gain anything."""


class Planned(msgspec.Struct, frozen=True, array_like=True):
    """What a node plans to hold of one layer, and what of it it owns. Key ``planned/<layer>``."""

    layer: LayerIndex
    held: Bitmap
    owned: Bitmap


Value = NodeInfo | Load | Links | Agreement | Holdings | Claims | Demand | PlanStamp | Planned

_SINGLE: dict[str, type[Value]] = {
    "node": NodeInfo,
    "load": Load,
    "links": Links,
    "agreement": Agreement,
    "plan": PlanStamp,
}
_LAYERED: dict[str, type[Holdings | Claims | Demand | Planned]] = {
    "holdings": Holdings,
    "claims": Claims,
    "demand": Demand,
    "planned": Planned,
}
_NAME_OF = {kind: name for name, kind in (*_SINGLE.items(), *_LAYERED.items())}
_DECODERS = {kind: msgspec.msgpack.Decoder(kind) for kind in _NAME_OF}
_ENCODER = msgspec.msgpack.Encoder()


def key_of(value: Value) -> str:
    """The key under which a value is kept."""
    name = _NAME_OF[type(value)]
    return f"{name}/{value.layer}" if isinstance(value, Holdings | Claims | Demand | Planned) else name


def pack(value: Value) -> bytes:
    """A value's bytes in its entry.

    Raises:
        ValueError: It is too large to be gossiped.
    """
    data = _ENCODER.encode(value)
    if len(data) > VALUE_BYTES_MAX:
        raise ValueError(f"{key_of(value)} takes {len(data)} bytes, the limit is {VALUE_BYTES_MAX}")
    return data


def unpack(key: str, data: bytes) -> Value | None:
    """The value of an entry; None for a key of a later version, or for bytes that are not what the key promises."""
    name, _, layer = key.partition("/")
    kind = _LAYERED.get(name) if layer else _SINGLE.get(name)
    if kind is None:
        return None
    try:
        value: Value = _DECODERS[kind].decode(data)
        if isinstance(value, Claims):
            value.epoch_of()
    except (msgspec.MsgspecError, ValueError):
        return None
    return value if key_of(value) == key else None
