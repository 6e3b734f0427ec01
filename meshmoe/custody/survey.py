"""What this node believes of the others' claims and holdings, indexed by expert.

It is made from gossip's `NodeView` structs. These are immutable, and parts that did not change stay the same objects,
so an update looks only at what changed and names the experts that must be thought about again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.claims import Claim, claim_of
from meshmoe.gossip import NodeView


class Survey:
    """The others, as gossip shows them."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self.nodes: dict[NodeId, NodeView] = {}
        """Present nodes without this one."""
        self._claims: dict[ExpertId, dict[NodeId, tuple[int, Claim]]] = {}
        self._holders: dict[ExpertId, set[NodeId]] = {}
        self._notes: dict[ExpertId, tuple[int, Claim, float]] = {}

    def note(self, expert: ExpertId, slot: int, claim: Claim, until_s: float) -> None:
        """A minter has said itself that its claim stands: believe it until gossip should have shown it."""
        self._notes[expert] = (slot, claim, until_s)

    def expire(self, now_s: float) -> list[ExpertId]:
        """Forget old notes; returns their experts."""
        old = [expert for expert, (_, _, until_s) in self._notes.items() if until_s <= now_s]
        for expert in old:
            del self._notes[expert]
        return old

    def next_s(self) -> float:
        """When the next note is old."""
        return min((until_s for _, _, until_s in self._notes.values()), default=float("inf"))

    def update(self, nodes: Mapping[NodeId, NodeView]) -> set[ExpertId]:
        """Take in a new view; returns the experts of which something changed."""
        changed: set[ExpertId] = set()
        for node in [node for node in self.nodes if node not in nodes]:
            changed |= self._index(self.nodes.pop(node), None)
        for node, view in nodes.items():
            known = self.nodes.get(node)
            if node != self._me and known is not view:
                self.nodes[node] = view
                changed |= self._index(known, view)
        return changed

    def claims(self, expert: ExpertId) -> list[tuple[int, Claim]]:
        """The others' standing claims with their slots, one a node."""
        claims = self._claims.get(expert, {})
        if expert in self._notes:
            slot, claim, _ = self._notes[expert]
            view = self.nodes.get(claim.node)
            if view is not None and view.generation == claim.generation:
                claims = {**claims, claim.node: max(claims.get(claim.node, (slot, claim)), (slot, claim), key=_claim)}
        return list(claims.values())

    def holders(self, expert: ExpertId) -> frozenset[NodeId]:
        """Other nodes where the expert is resident."""
        return frozenset(self._holders.get(expert, ()))

    def replicas(self, node: NodeId) -> list[ExpertId]:
        """What is resident at another node without a claim of its: it may go if room is needed."""
        view = self.nodes[node]
        return [e for e in _holdings_of(view) if e.index not in view.claims.get(e.layer, {})]

    def storers(self) -> frozenset[NodeId]:
        """Other nodes that have all of the model on disk."""
        return frozenset(node for node, view in self.nodes.items() if view.info is not None and view.info.stores_model)

    def is_leaving(self, node: NodeId) -> bool:
        """Whether a node has said that it will go."""
        view = self.nodes.get(node)
        return view is not None and view.info is not None and view.info.state == "leaving"

    def capacities(self) -> dict[NodeId, int]:
        """Bytes that each serving node offers."""
        return {
            node: view.info.capacity_bytes
            for node, view in self.nodes.items()
            if view.info is not None and view.info.state == "serving"
        }

    def _index(self, old: NodeView | None, new: NodeView | None) -> set[ExpertId]:
        """Replace one node's entries; returns the experts concerned."""
        one = new if new is not None else old
        assert one is not None
        reborn = old is not None and new is not None and old.generation != new.generation
        if reborn or _state(old) != _state(new):  # the same entries may mean something else now
            changed = self._remove(old) if old is not None else set()
            return changed | (self._add(one.node, new, None) if new is not None else set())
        return self._add(one.node, new, old)

    def _remove(self, old: NodeView) -> set[ExpertId]:
        changed = set()
        for expert, _ in _claims_of(old):
            self._claims.get(expert, {}).pop(old.node, None)
            changed.add(expert)
        for expert in _holdings_of(old):
            self._holders.get(expert, set()).discard(old.node)
            changed.add(expert)
        return changed

    def _add(self, node: NodeId, new: NodeView | None, old: NodeView | None) -> set[ExpertId]:
        """Enter what ``new`` says in layers where it differs from ``old``."""
        if new is None:
            return self._remove(old) if old is not None else set()
        changed = set()
        before = dict(_claims_of(old, unlike=new)) if old is not None else {}
        after = dict(_claims_of(new, unlike=old))
        for expert in before.keys() | after.keys():
            if before.get(expert) != after.get(expert):
                changed.add(expert)
                claims = self._claims.setdefault(expert, {})
                if expert in after:
                    claims[node] = after[expert]
                else:
                    claims.pop(node, None)
        held_before = set(_holdings_of(old, unlike=new)) if old is not None else set()
        held = set(_holdings_of(new, unlike=old))
        for expert in held - held_before:
            self._holders.setdefault(expert, set()).add(node)
        for expert in held_before - held:
            self._holders.get(expert, set()).discard(node)
        return changed | (held ^ held_before)


def _claim(entry: tuple[int, Claim]) -> Claim:
    return entry[1]


def _state(view: NodeView | None) -> str | None:
    return None if view is None or view.info is None else view.info.state


def _claims_of(view: NodeView, unlike: NodeView | None = None) -> Iterator[tuple[ExpertId, tuple[int, Claim]]]:
    """A node's claims, without layers that are the very same in ``unlike``."""
    for layer, stamps in view.claims.items():
        if unlike is None or unlike.claims.get(layer) is not stamps:
            for index, stamp in stamps.items():
                yield ExpertId(layer, index), claim_of(stamp, view.node, view.generation)


def _holdings_of(view: NodeView, unlike: NodeView | None = None) -> Iterator[ExpertId]:
    """A node's residents, without layers that are the very same in ``unlike``."""
    for layer, bitmap in view.holdings.items():
        if unlike is None or unlike.holdings.get(layer) is not bitmap:
            bits = int.from_bytes(bitmap, "little")
            while bits:
                low = bits & -bits
                yield ExpertId(layer, low.bit_length() - 1)
                bits ^= low
