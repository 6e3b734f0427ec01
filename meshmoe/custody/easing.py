"""Room for a vacant slot that no node can fill: give away an expert to make it.

Two slots of an expert are on two nodes, so free room counts only where the expert is not: when the one node with room
left is custodian of the expert whose other slot is vacant, everybody else is full, and nothing would ever move. Then a
node whose turn it is to fill the slot gives another expert of its own to a node with room. It gives only what makes
room enough, and fills the slot as soon as that is gone: each such migration leads to one more filled slot, so they come
to an end also where there is too little room for all.
"""

from __future__ import annotations

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.custodian import Custodian
from meshmoe.custody.desk import Desk
from meshmoe.custody.donor import Donors
from meshmoe.custody.takers import takers

NEVER_S = float("inf")


class Easing:
    """Idle but while this node is to fill a slot, has no room, and has nothing that it could just drop."""

    def __init__(self, desk: Desk, custodian: Custodian, donors: Donors) -> None:
        self._desk = desk
        self._custodian = custodian
        self._donors = donors
        self._give_at_s = NEVER_S
        self._tried: set[tuple[ExpertId, NodeId]] = set()

    def advance(self) -> None:
        """Give an expert away if that has been the only way for a while; one at a time."""
        desk = self._desk
        cramped = self._custodian.cramped
        if desk.leaving or cramped is None:
            self._give_at_s = NEVER_S
            self._tried.clear()
        elif self._give_at_s == NEVER_S:
            self._give_at_s = desk.now + desk.config.ease_after_s
        elif desk.now >= self._give_at_s:
            self._give_at_s = desk.now + desk.config.ease_after_s
            short_bytes = desk.expert_bytes[cramped] - desk.ledger.free_bytes
            if not len(self._donors) and not self._give(short_bytes):
                self._tried.clear()  # views change: go round again

    def next_s(self) -> float:
        """When `advance` has something to do."""
        return self._give_at_s

    def _give(self, short_bytes: int) -> bool:
        """Offer an expert of that size or more to somebody with room; those first of which this node is no guardian."""
        desk = self._desk
        guarded = {expert for expert, nodes in desk.plan.guardians.items() if desk.me in nodes}
        room_bytes = {node: self._room_bytes(node) for node in desk.survey.nodes}
        large = [expert for expert in desk.book.standing() if desk.expert_bytes[expert] >= short_bytes]
        for expert in sorted(large, key=lambda expert: (expert in guarded, expert)):
            for peer in takers(desk, self._donors, expert):
                if (expert, peer) not in self._tried and room_bytes[peer] >= desk.expert_bytes[expert]:
                    self._tried.add((expert, peer))
                    self._donors.give(expert, peer)
                    return True
        return False

    def _room_bytes(self, node: NodeId) -> int:
        """What another node has free, as it last told, or could make free by dropping replicas."""
        desk = self._desk
        load = desk.survey.nodes[node].load
        free_bytes = 0 if load is None else load.free_bytes
        return free_bytes + sum(desk.expert_bytes.get(expert, 0) for expert in desk.survey.replicas(node))
