"""Room for a vacant slot that no node can fill: give away an expert to make it.

Two slots of an expert are on two nodes, so free room counts only where the expert is not: when the one node with room
left is custodian of the expert whose other slot is vacant, everybody else is full, and nothing would ever move. Then a
node whose turn it is to fill the slot gives another expert of its own to a node with room, or several where experts
differ in size. It gives only what makes room enough, and fills the slot as soon as that is gone: each such row of
migrations leads to one more filled slot, so they come to an end also where there is too little room for all.
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
            if len(self._donors) and not desk.survey.claims(cramped):
                # Nobody has it: what goes must not come back as a second slot before there is room enough.
                self._custodian.spare_room_until(desk.now + 2 * desk.config.ease_after_s)

    def next_s(self) -> float:
        """When `advance` has something to do."""
        return self._give_at_s

    def _give(self, short_bytes: int) -> bool:
        """Offer an expert to somebody with room, if that alone or with others after it makes room enough."""
        chosen = self._choose(short_bytes)
        if chosen is None:
            return False
        self._tried.add(chosen)
        self._donors.give(*chosen)
        return True

    def _choose(self, short_bytes: int) -> tuple[ExpertId, NodeId] | None:
        """One that is large enough, those first of which this node is no guardian; else the first of several."""
        desk = self._desk
        guarded = {expert for expert, nodes in desk.plan.guardians.items() if desk.me in nodes}
        room_bytes = {node: self._room_bytes(node) for node in desk.survey.nodes}
        ordered = sorted(desk.book.standing(), key=lambda expert: (expert in guarded, expert))
        for expert in ordered:
            peer = self._taker(expert, room_bytes) if desk.expert_bytes[expert] >= short_bytes else None
            if peer is not None:
                return expert, peer
        several: list[tuple[ExpertId, NodeId]] = []
        for expert in sorted(ordered, key=lambda expert: -desk.expert_bytes[expert]):
            peer = self._taker(expert, room_bytes)
            if peer is not None:
                several.append((expert, peer))
                room_bytes[peer] -= desk.expert_bytes[expert]
                short_bytes -= desk.expert_bytes[expert]
            if short_bytes <= 0:
                return several[0]  # the next ones when this one is gone: by then others may have room
        return None

    def _taker(self, expert: ExpertId, room_bytes: dict[NodeId, int]) -> NodeId | None:
        for peer in takers(self._desk, self._donors, expert):
            if (expert, peer) not in self._tried and room_bytes[peer] >= self._desk.expert_bytes[expert]:
                return peer
        return None

    def _room_bytes(self, node: NodeId) -> int:
        """What another node has free, as it last told, or could make free by dropping replicas."""
        desk = self._desk
        load = desk.survey.nodes[node].load
        free_bytes = 0 if load is None else load.free_bytes
        return free_bytes + sum(desk.expert_bytes.get(expert, 0) for expert in desk.survey.replicas(node))
