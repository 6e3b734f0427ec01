"""What this node believes of all nodes: the read side of gossip.

The view shows the nodes that membership holds for present (alive or suspect), each with the entries of that very
life, and this node itself. It is kept up to date entry by entry, so that the questions asked most (who holds this
expert?) are one dictionary look-up. Each `NodeView` is immutable: a copy of `View.nodes` is a snapshot, at the cost
of a dict copy.

`View` belongs to the thread that drives the gossip machine. `holders` and the other look-ups replace whole immutable
values, so other threads may call them too and see a value that was true a moment ago.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import msgspec

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip.packing import RATES, unpack_bitmap
from meshmoe.gossip.values import (
    Agreement,
    Claims,
    Demand,
    Holdings,
    Link,
    Links,
    Load,
    NodeInfo,
    Planned,
    PlanStamp,
    Value,
)

V = TypeVar("V")


class Claim(NamedTuple):
    """A promise not to drop an expert; the greater claim prevails."""

    epoch: int
    node: NodeId


class NodeView(msgspec.Struct, frozen=True):
    """One node, as its entries tell. What it has not (yet) told is None or empty.

    Attributes:
        node: Its name.
        generation: Its life.
        suspect: Whether membership suspects it: prefer others.
        info: What it is.
        load: How busy and full it is.
        links: Its measured links, by peer.
        agreement: Digest of the holder map that it sees.
        holdings: Bitmap of resident experts, by layer.
        claims: Epoch of each claimed expert, by layer.
        demand: Quantised rates of its own requests, by layer.
        stamp: Which plan it has.
        planned: What it plans to hold and own, by layer; of several versions while a new one is on its way.
    """

    node: NodeId
    generation: int
    suspect: bool = False
    info: NodeInfo | None = None
    load: Load | None = None
    links: Mapping[NodeId, Link] = MappingProxyType({})
    agreement: bytes | None = None
    holdings: Mapping[int, bytes] = MappingProxyType({})
    claims: Mapping[int, Mapping[int, int]] = MappingProxyType({})
    demand: Mapping[int, bytes] = MappingProxyType({})
    stamp: PlanStamp | None = None
    planned: Mapping[int, Planned] = MappingProxyType({})

    def demand_per_s(self, layer: int) -> list[float]:
        """Calls a second of each expert of a layer by this node's own requests; experts beyond the end have none."""
        return [RATES[byte] for byte in self.demand.get(layer, b"")]


class View:
    """See the module's text."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, NodeView] = {}
        self._holders: dict[ExpertId, tuple[NodeId, ...]] = {}
        self._claims: dict[ExpertId, tuple[Claim, ...]] = {}
        self._digest: tuple[int, bytes] = (-1, b"")
        self._experts_by_layer: Sequence[int] | None = None
        self.version = 0
        """Grows with every change."""
        self.holders_version = 0
        """Grows with every change of who holds what, or of who is present."""

    # -- questions ------------------------------------------------------------

    @property
    def nodes(self) -> Mapping[NodeId, NodeView]:
        """Present nodes. Live: copy it for a snapshot."""
        return MappingProxyType(self._nodes)

    def holders(self, expert: ExpertId) -> tuple[NodeId, ...]:
        """Nodes where an expert is resident, by name."""
        return self._holders.get(expert, ())

    def holder_map(self) -> dict[ExpertId, tuple[NodeId, ...]]:
        """All experts that somebody holds, with their holders: a copy."""
        return dict(self._holders)

    def claims(self, expert: ExpertId) -> tuple[Claim, ...]:
        """Claims on an expert by present nodes, the one that prevails first."""
        return self._claims.get(expert, ())

    def free_bytes(self, node: NodeId) -> int:
        """What a node has free for experts, as it last told; 0 if it is absent or has not told."""
        view = self._nodes.get(node)
        return view.load.free_bytes if view is not None and view.load is not None else 0

    def demand_per_s(self, layer: int) -> dict[NodeId, list[float]]:
        """For each node that has told, the calls a second of each expert of a layer."""
        return {node: view.demand_per_s(layer) for node, view in self._nodes.items() if layer in view.demand}

    def holder_digest(self) -> bytes:
        """16 bytes that are equal at two nodes exactly if they see the same holders; see `holder_digest`."""
        if self._digest[0] != self.holders_version:
            self._digest = (self.holders_version, holder_digest(self._nodes))
        return self._digest[1]

    def disagreeing(self) -> list[NodeId]:
        """Present nodes whose last published holder map differs from what this node sees, or that published none."""
        digest = self.holder_digest()
        return sorted(node for node, view in self._nodes.items() if view.agreement != digest)

    def limit(self, experts_by_layer: Sequence[int]) -> None:
        """From now on, show nothing of experts that the model does not have, whoever tells of them.

        Values are checked when they come in, but what the model has is known only later; and everybody who looks at the
        view may then count on it.
        """
        self._experts_by_layer = experts_by_layer
        for node, shown in list(self._nodes.items()):
            for layer, resident in list(shown.holdings.items()):
                self.set(node, f"holdings/{layer}", Holdings(layer, resident))
            for layer, epochs in list(shown.claims.items()):
                self.set(node, f"claims/{layer}", Claims.of(layer, epochs))
            for layer, rates in list(shown.demand.items()):
                self.set(node, f"demand/{layer}", Demand(layer, rates))
            for layer, planned in list(shown.planned.items()):
                self.set(node, f"planned/{layer}", planned)

    # -- changes, made by the gossip machine ------------------------------------------------------------

    def show(self, node: NodeId, generation: int, *, suspect: bool, values: Mapping[str, Value]) -> None:
        """Let a node appear, or appear in a later life, or change its suspicion."""
        shown = self._nodes.get(node)
        if shown is not None and shown.generation == generation:
            if shown.suspect != suspect:
                self._nodes[node] = msgspec.structs.replace(shown, suspect=suspect)
                self.version += 1
            return
        if shown is not None:
            self.hide(node)
        self._nodes[node] = NodeView(node, generation, suspect)
        self.version += 1
        self.holders_version += 1
        for key, value in values.items():
            self.set(node, key, value)

    def hide(self, node: NodeId) -> None:
        """Let a node disappear; one that is not shown is fine."""
        shown = self._nodes.get(node)
        if shown is None:
            return
        for layer in list(shown.holdings):
            self._index_holdings(node, layer, shown.holdings[layer], b"")
        for layer in list(shown.claims):
            self._index_claims(node, layer, shown.claims[layer], {})
        del self._nodes[node]
        self.version += 1
        self.holders_version += 1

    def set(self, node: NodeId, key: str, value: Value | None) -> None:
        """Take in one entry of a node that is shown; None removes it."""
        shown = self._nodes[node]
        name, _, layer_text = key.partition("/")
        layer = int(layer_text) if layer_text else -1
        if self._experts_by_layer is not None:
            value = _within(self._experts_by_layer, value)
        match value:
            case NodeInfo():
                changed = msgspec.structs.replace(shown, info=value)
            case Load():
                changed = msgspec.structs.replace(shown, load=value)
            case Links():
                links = {NodeId(link.peer): link for link in value.links}
                changed = msgspec.structs.replace(shown, links=MappingProxyType(links))
            case Agreement():
                changed = msgspec.structs.replace(shown, agreement=value.digest)
            case Holdings():
                self._index_holdings(node, layer, shown.holdings.get(layer, b""), value.resident)
                changed = msgspec.structs.replace(shown, holdings=_with(shown.holdings, layer, value.resident))
                self.holders_version += 1
            case Claims():
                epochs = MappingProxyType(value.epoch_of())
                self._index_claims(node, layer, shown.claims.get(layer, {}), epochs)
                changed = msgspec.structs.replace(shown, claims=_with(shown.claims, layer, epochs))
            case Demand():
                changed = msgspec.structs.replace(shown, demand=_with(shown.demand, layer, value.rates))
            case PlanStamp():
                changed = msgspec.structs.replace(shown, stamp=value)
            case Planned():
                changed = msgspec.structs.replace(shown, planned=_with(shown.planned, layer, value))
            case None:
                changed = self._without(shown, name, layer)
        self._nodes[node] = changed
        self.version += 1

    def _without(self, shown: NodeView, name: str, layer: int) -> NodeView:
        replace = msgspec.structs.replace
        match name:
            case "node":
                return replace(shown, info=None)
            case "load":
                return replace(shown, load=None)
            case "links":
                return replace(shown, links=MappingProxyType({}))
            case "agreement":
                return replace(shown, agreement=None)
            case "holdings":
                self._index_holdings(shown.node, layer, shown.holdings.get(layer, b""), b"")
                self.holders_version += 1
                return replace(shown, holdings=_with(shown.holdings, layer, None))
            case "claims":
                self._index_claims(shown.node, layer, shown.claims.get(layer, {}), {})
                return replace(shown, claims=_with(shown.claims, layer, None))
            case "demand":
                return replace(shown, demand=_with(shown.demand, layer, None))
            case "plan":
                return replace(shown, stamp=None)
            case "planned":
                return replace(shown, planned=_with(shown.planned, layer, None))
        return shown

    def _index_holdings(self, node: NodeId, layer: int, before: bytes, after: bytes) -> None:
        bits_before, bits_after = int.from_bytes(before, "little"), int.from_bytes(after, "little")
        changed = bits_before ^ bits_after
        for index in unpack_bitmap(changed.to_bytes((changed.bit_length() + 7) // 8, "little")):
            expert = ExpertId(layer, index)
            holders = [holder for holder in self._holders.get(expert, ()) if holder != node]
            if bits_after >> index & 1:
                holders.append(node)
            if holders:
                self._holders[expert] = tuple(sorted(holders))
            else:
                del self._holders[expert]

    def _index_claims(self, node: NodeId, layer: int, before: Mapping[int, int], after: Mapping[int, int]) -> None:
        for index in before.keys() | after.keys():
            if before.get(index) == after.get(index):
                continue
            expert = ExpertId(layer, index)
            others = [claim for claim in self._claims.get(expert, ()) if claim.node != node]
            if index in after:
                others.append(Claim(after[index], node))
            if others:
                self._claims[expert] = tuple(sorted(others, reverse=True))
            else:
                del self._claims[expert]


def holder_digest(nodes: Mapping[NodeId, NodeView]) -> bytes:
    """Digest of who holds what: a pure function of the nodes shown and their holdings, in whatever order they came."""
    digest = hashlib.blake2b(digest_size=16)
    for node in sorted(nodes):
        digest.update(f"{node}\n".encode())
        holdings = nodes[node].holdings
        for layer in sorted(holdings):
            bitmap = holdings[layer].rstrip(b"\0")
            if bitmap:
                digest.update(f"{layer}:{len(bitmap)}\n".encode())
                digest.update(bitmap)
    return digest.digest()


def _within(experts_by_layer: Sequence[int], value: Value | None) -> Value | None:
    """A value without what it says of experts that the model does not have; None if the layer is not there at all."""
    if not isinstance(value, Holdings | Claims | Demand | Planned):
        return value
    if value.layer >= len(experts_by_layer):
        return None
    count = experts_by_layer[value.layer]
    match value:
        case Holdings():
            return Holdings(value.layer, _cut(value.resident, count))
        case Claims():
            return Claims.of(value.layer, {i: epoch for i, epoch in value.epoch_of().items() if i < count})
        case Demand():
            return Demand(value.layer, value.rates[:count])
        case Planned():
            return Planned(value.layer, _cut(value.held, count), _cut(value.owned, count))


def _cut(bitmap: bytes, count: int) -> bytes:
    """The first ``count`` bits; the very bytes where that changes nothing."""
    whole = int.from_bytes(bitmap, "little")
    if whole >> count == 0:
        return bitmap
    part = whole & ((1 << count) - 1)
    return part.to_bytes((part.bit_length() + 7) // 8, "little")


def _with(mapping: Mapping[int, V], layer: int, value: V | None) -> Mapping[int, V]:
    changed = dict(mapping)
    if value is None:
        changed.pop(layer, None)
    else:
        changed[layer] = value
    return MappingProxyType(changed)
