"""Claims follow the plans: custody of an expert goes where nodes have agreed that it should be held.

A node loads what its plan wants by itself, but an expert in another node's custody would stay there for ever. So a
custodian that is no guardian of an expert any more gives it to a guardian, by an ordinary migration: to one that holds
it already if there is one, which then only mints; else to one with room, or with copies that can go. A few at a time,
and a refusal rests a while. Full nodes free each other's room step by step: each step is the load of one expert by its
planned holder, which takes the one free place, and the going of its claim, which frees another. So a claim goes as soon
as gossip shows such a load: a look once a second alone moved one expert a second and node. Nothing here decides whether
a claim may go: the custody rule does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.desk import Desk
from meshmoe.custody.donor import Donors
from meshmoe.custody.takers import has_room

NEVER_S = float("inf")

LOOK_S = 1.0
"""How often claims are looked at while some are misplaced; ten times as long while none is."""

REST_S = 4.0
"""An expert that was offered is not offered again before this time."""


class Relocation:
    """Idle while there are no plans, or all claims stand where they should."""

    def __init__(self, desk: Desk, donors: Donors) -> None:
        self._desk = desk
        self._donors = donors
        self._look_s = NEVER_S
        self._misplaced: OrderedDict[ExpertId, None] = OrderedDict()
        self._resting_until_s: dict[ExpertId, float] = {}

    def plans_changed(self, *, any_plans: bool) -> None:
        """Nodes have agreed on something else, or there are no plans any more."""
        self._look_s = self._desk.now if any_plans else NEVER_S
        self._misplaced.clear()
        self._resting_until_s.clear()

    def seen(self, experts: Iterable[ExpertId]) -> None:
        """The view of these has changed: what a planned holder has loaded by now goes to it, rest or no rest."""
        if self._look_s == NEVER_S:
            return
        desk = self._desk
        for expert in experts:
            if not self._is_misplaced(expert) or expert in self._donors:
                continue
            if not desk.survey.holders(expert).isdisjoint(desk.plan.guardians[expert]):
                self._resting_until_s.pop(expert, None)
                self._misplaced[expert] = None
                self._misplaced.move_to_end(expert, last=False)

    def advance(self) -> None:
        """Give what is due, as many at once as migrations may be."""
        desk = self._desk
        if desk.leaving:
            return
        if desk.now >= self._look_s:
            standing = desk.book.standing()
            self._misplaced = OrderedDict.fromkeys(expert for expert in standing if self._is_misplaced(expert))
            self._look_s = desk.now + (LOOK_S if self._misplaced else 10 * LOOK_S)
        while self._misplaced and len(self._donors) < desk.config.migrations_max:
            expert, _ = self._misplaced.popitem(last=False)
            if self._resting_until_s.get(expert, 0.0) > desk.now or not self._is_misplaced(expert):
                continue
            peer = self._taker(expert, desk.plan.guardians[expert])
            if peer is not None:
                self._resting_until_s[expert] = desk.now + REST_S
                self._donors.give(expert, peer)

    def _is_misplaced(self, expert: ExpertId) -> bool:
        desk = self._desk
        guardians = desk.plan.guardians.get(expert, ())
        return bool(guardians) and desk.me not in guardians and desk.book[expert].claim is not None

    def next_s(self) -> float:
        """When `advance` has something to do."""
        return NEVER_S if self._desk.leaving else self._look_s

    def _taker(self, expert: ExpertId, guardians: tuple[NodeId, ...]) -> NodeId | None:
        """The guardian to whom it costs least."""
        desk, slot = self._desk, self._desk.book[expert].slot
        where = {claim.node: at for at, claim in desk.survey.claims(expert)}
        able = [node for node in guardians if node in desk.survey.nodes and where.get(node, slot) == slot]
        holders = desk.survey.holders(expert)
        for node in able:
            if node in holders:
                return node
        ready = (node for node in able if has_room(desk, self._donors, node, expert))
        return next(ready, next((node for node in able if self._could_make_room(node, expert)), None))

    def _could_make_room(self, node: NodeId, expert: ExpertId) -> bool:
        """Whether a node has copies that nobody relies on: claims go first, or full nodes wait for each other."""
        desk = self._desk
        replica_bytes = sum(desk.expert_bytes.get(replica, 0) for replica in desk.survey.replicas(node))
        return replica_bytes - self._donors.promised_bytes(node) >= desk.expert_bytes[expert]
