"""Graceful leave: hand over everything in custody, then go; or say what could not be handed over.

What this node is custodian of is missed when it goes, with two exceptions that the custodian's own questions take care
of: another claim stands in the same slot, or only one slot is wanted and another node stands in another one. Everything
else is given away by migrations, to whom it costs least: a node that has it resident already, then the guardians, then
others with room. A node that refused is not asked again in the same round. Where everybody else is gone or leaving too,
there is nobody to wait for.
"""

from __future__ import annotations

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.desk import Desk
from meshmoe.custody.donor import Donors
from meshmoe.custody.effects import LeaveFinished, LeaveProgress
from meshmoe.custody.takers import takers


class Farewell:
    """Idle until `begin`; then `advance` after every event."""

    def __init__(self, desk: Desk, donors: Donors) -> None:
        self._desk = desk
        self._donors = donors
        self._total = 0
        self._told = -1
        self._rounds = 0
        self._round_ends_s = float("inf")
        self._begun_s = float("inf")
        self._gives_up_s = float("inf")
        """When it is given up, unless somebody comes who could take something."""
        self._refused: set[tuple[ExpertId, NodeId]] = set()
        self._finished = False

    def begin(self) -> None:
        """Start handing over; a second time changes nothing."""
        desk = self._desk
        if desk.leaving:
            return
        desk.leaving = True
        self._begun_s = desk.now
        desk.wants.clear()
        self._total = len(desk.book.standing())

    def advance(self) -> None:
        """Go on as far as can be."""
        desk = self._desk
        if not desk.leaving or self._finished:
            return
        standing = desk.book.standing()
        if self._total - len(standing) != self._told:
            self._told = self._total - len(standing)
            desk.out.append(LeaveProgress(self._told, self._total))
            self._rounds = 0
        if not standing:
            self._finish(standing)
            return
        self._look_round()
        if desk.now >= self._gives_up_s:
            self._finish(standing)
            return
        if desk.now >= self._round_ends_s:
            self._rounds += 1
            self._round_ends_s = float("inf")
            self._refused.clear()
        # Where the others lack capacity for everything, asking again would only keep the leaver waiting.
        if self._rounds >= (1 if desk.plan.missing_bytes else desk.config.leave_rounds):
            self._finish(standing)
            return
        for expert in standing:
            if len(self._donors) >= desk.config.migrations_max:
                return
            if expert not in self._donors and not self._is_covered(expert):
                self._give(expert)
        if not len(self._donors) and self._round_ends_s == float("inf"):
            # Nobody takes anything now, or what is left waits for answers to questions.
            self._round_ends_s = desk.now + desk.config.ask_timeout_s + desk.config.leave_retry_s

    def next_s(self) -> float:
        """When `advance` has something to do."""
        return float("inf") if self._finished else min(self._round_ends_s, self._gives_up_s)

    def _look_round(self) -> None:
        """Wait no longer than a moment where nobody is left who might take something: a box and its only peer go off.

        But never less in all than a question waits for its answer: see `Questions.answer`.
        """
        desk = self._desk
        if not all(desk.survey.is_leaving(node) for node in desk.survey.nodes):
            self._gives_up_s = float("inf")
        elif self._gives_up_s == float("inf"):
            config = desk.config
            self._gives_up_s = max(self._begun_s + config.ask_timeout_s, desk.now + config.leave_retry_s)

    def _is_covered(self, expert: ExpertId) -> bool:
        """Whether the custodian's own questions can relieve us."""
        desk = self._desk
        record = desk.book[expert]
        others = [(slot, claim) for slot, claim in desk.survey.claims(expert) if not desk.survey.is_leaving(claim.node)]
        if desk.plan.slots(expert) == 1 and any(slot != record.slot for slot, _ in others):
            return True
        return any(slot == record.slot and record.claim is not None and claim > record.claim for slot, claim in others)

    def _give(self, expert: ExpertId) -> None:
        """Offer an expert to the best node that has not refused it in this round."""
        for peer in takers(self._desk, self._donors, expert):
            if self._donors.refusal(expert, peer) is not None and (expert, peer) not in self._refused:
                self._refused.add((expert, peer))  # by the last migration that we tried
                self._donors.forget_refusal(expert, peer)
            if (expert, peer) not in self._refused:
                self._donors.give(expert, peer)
                return

    def _finish(self, standing: list[ExpertId]) -> None:
        self._finished = True
        self._desk.out.append(LeaveFinished(tuple((expert, self._reason(expert)) for expert in standing)))

    def _reason(self, expert: ExpertId) -> str:
        """Why an expert could not be handed over."""
        asked = takers(self._desk, self._donors, expert)
        if not asked:
            nobody = self._gives_up_s < float("inf")
            return "every other node has gone or is leaving too" if nobody else "no other node could take it"
        reasons = {self._donors.refusal(expert, node) for node in asked} - {None, ""}
        return "; ".join(sorted(str(reason) for reason in reasons)) or "nobody took it in time"
