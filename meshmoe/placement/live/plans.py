"""Plans on their way through gossip: a stamp, and one entry a layer; read again only when all of them fit together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from meshmoe.core.ids import NodeId
from meshmoe.gossip import NodeView, Planned, PlanStamp, Value
from meshmoe.gossip.packing import RATES
from meshmoe.placement.exchange import PeerPlan
from meshmoe.placement.exchange.plan import Plan
from meshmoe.placement.table import Mask
from meshmoe.placement.trace import Floats
from meshmoe.placement.world import ModelShape

_RATES = np.array(RATES)


def pack_mask(mask: Mask) -> bytes:
    """One layer's ``[experts]`` as a bitmap of gossip."""
    return np.packbits(mask, bitorder="little").tobytes().rstrip(b"\0")


def unpack_mask(bitmap: bytes, experts: int) -> Mask:
    """``[experts]``; bits beyond are left out."""
    # Filled up by hand: numpy's unpackbits leaves memory as it was where an empty array is asked for more bits.
    bits = np.frombuffer(bitmap.ljust(-(-experts // 8), b"\0"), np.uint8)
    return np.unpackbits(bits, count=experts, bitorder="little").astype(bool)


def plan_digest(held: Mask, owned: Mask) -> bytes:
    """16 bytes that name what ``[layers, experts]`` are held and owned."""
    digest = hashlib.blake2b(digest_size=16)
    for mask in (held, owned):
        digest.update(np.packbits(mask).tobytes())
    return digest.digest()


class PlanNews:
    """What of this node's plan gossip has not been told yet."""

    def __init__(self) -> None:
        self._stamp: PlanStamp | None = None
        self._layers: dict[int, Planned] = {}

    def of(self, plan: Plan, *, quiet: bool) -> tuple[Value, ...]:
        """Entries that differ from what was told last."""
        stamp = PlanStamp(plan.version, plan_digest(plan.held, plan.owned), quiet)
        if stamp == self._stamp:
            return ()
        news: list[Value] = []
        if self._stamp is None or (stamp.version, stamp.digest) != (self._stamp.version, self._stamp.digest):
            for layer, (held, owned) in enumerate(zip(plan.held, plan.owned, strict=True)):
                planned = Planned(layer, pack_mask(held), pack_mask(owned))
                if planned != self._layers.get(layer):
                    self._layers[layer] = planned
                    news.append(planned)
        self._stamp = stamp
        return (*news, stamp)


class PlanReader:
    """The last whole plan of every peer. A newer one of which layers are still on their way does not count yet."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._plans: dict[NodeId, tuple[int, PlanStamp, Mask, Mask]] = {}
        self._demand: dict[NodeId, tuple[Mapping[int, bytes], Floats]] = {}

    def read(self, nodes: Mapping[NodeId, NodeView]) -> dict[NodeId, PeerPlan]:
        """Plans of all nodes that have told a whole one."""
        for forgotten in [node for node in self._plans if node not in nodes]:
            del self._plans[forgotten]
            self._demand.pop(forgotten, None)
        found = {}
        for node, view in nodes.items():
            self._update(node, view)
            if node in self._plans:
                _, stamp, held, owned = self._plans[node]
                found[node] = PeerPlan(stamp.version, held, owned, self._demand_of(node, view))
        return found

    def _update(self, node: NodeId, view: NodeView) -> None:
        stamp, known = view.stamp, self._plans.get(node)
        if known is not None and known[0] != view.generation:
            del self._plans[node]
            known = None
        if stamp is None or (known is not None and known[1].version == stamp.version):
            return
        layers, experts = self._shape.expert_bytes.shape
        held, owned = np.zeros((2, layers, experts), bool)
        for layer, planned in view.planned.items():
            if layer < layers:
                held[layer], owned[layer] = unpack_mask(planned.held, experts), unpack_mask(planned.owned, experts)
        if plan_digest(held, owned) == stamp.digest:
            # A plan that this model cannot have is cut to what it can: peers may tell anything.
            held &= self._shape.exists
            self._plans[node] = (view.generation, stamp, held, owned & held)

    def _demand_of(self, node: NodeId, view: NodeView) -> Floats:
        known = self._demand.get(node)
        if known is not None and known[0] is view.demand:
            return known[1]
        layers, experts = self._shape.expert_bytes.shape
        demand = np.zeros((layers, experts))
        for layer, rates in view.demand.items():
            if layer < layers:
                told = _RATES[np.frombuffer(rates, np.uint8)][:experts]
                demand[layer, : len(told)] = told
        self._demand[node] = (view.demand, demand)
        return demand
