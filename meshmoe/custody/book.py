"""The records of one node about all experts, and the write-ahead discipline around them.

Nobody else touches a record. Every change goes through the custody rule and is noted here; `flush` turns what was
noted into `Persist` and `Tell`, in this order, and the machine puts them before everything else that the same event
caused. So nothing is sent on the strength of a claim that is not on disk.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.claims import AskId, Claim, Custody, Life, stamp_of
from meshmoe.custody.effects import Persist, Tell
from meshmoe.custody.rule import CustodyRule
from meshmoe.custody.state import CustodyState, MintedClaim
from meshmoe.gossip import Claims

_BLANK = Custody()


class Book:
    """See the module's text."""

    def __init__(
        self,
        life: Life,
        model_digest: str,
        experts: Iterable[ExpertId],
        rule: CustodyRule,
        state: CustodyState | None,
    ) -> None:
        """Open the book of a new life.

        Args:
            life: This node's; its generation is above that of ``state``.
            model_digest: Of the model.
            experts: All experts of the model.
            rule: The custody rule.
            state: What an earlier life left on disk.
        """
        self.life = life
        self.rule = rule
        self._model_digest = model_digest
        self._records = dict.fromkeys(experts, _BLANK)
        self._minted: dict[int, list[MintedClaim]] = {}
        self._experts_of: dict[int, list[ExpertId]] = {}
        for expert in sorted(self._records):
            self._experts_of.setdefault(expert.layer, []).append(expert)
        self._told: dict[int, dict[int, int]] = {}
        self._changed_layers: set[int] = set()
        self._must_persist = True  # the generation, before anything is sent
        self.restored: set[ExpertId] = set()
        """Experts of which an earlier life was custodian when it ended."""
        self.asking: set[ExpertId] = set()
        """Experts about which a question is out."""
        for expert, minted in ({} if state is None else state.claims()).items():
            if expert in self._records:
                self._restore(expert, minted)

    def __contains__(self, expert: ExpertId) -> bool:
        """Whether the model has such an expert."""
        return expert in self._records

    def __getitem__(self, expert: ExpertId) -> Custody:
        """The record of an expert."""
        return self._records[expert]

    def get(self, expert: ExpertId) -> Custody | None:
        """The record of an expert; None if the model has no such expert."""
        return self._records.get(expert)

    def standing(self) -> list[ExpertId]:
        """Experts in this node's custody."""
        return [expert for expert, record in self._records.items() if record.claim is not None]

    # -- transitions ------------------------------------------------------------

    def loaded(self, expert: ExpertId) -> None:
        """The expert has become resident."""
        self._records[expert] = self.rule.loaded(self._records[expert])

    def dropped(self, expert: ExpertId) -> None:
        """The expert is about to go: from now on nobody is answered for it."""
        self._records[expert] = self.rule.dropped(self._records[expert])

    def see(self, expert: ExpertId, slot: int, claim: Claim) -> None:
        """A claim of somebody was heard of."""
        self._records[expert] = self.rule.see(self._records[expert], slot, claim)

    def mint(self, expert: ExpertId, slot: int) -> None:
        """Become custodian, or renew the claim that stands in the slot."""
        self._records[expert] = self.rule.mint(self._records[expert], slot, self.life)
        self._changed_layers.add(expert.layer)
        self._must_persist = True

    def ask(self, expert: ExpertId, slot: int, peer: NodeId, until_s: float) -> AskId:
        """Put a question to ``peer``; returns its name."""
        record = self._records[expert] = self.rule.ask(self._records[expert], slot, peer, self.life, until_s)
        assert record.ask is not None
        self.asking.add(expert)
        return record.ask.id

    def answered(
        self, expert: ExpertId, ask_id: AskId, slot: int, peer: NodeId, claim: Claim | None, now_s: float
    ) -> bool:
        """An answer came; returns whether it released our claim."""
        before = self._records[expert]
        if claim is not None:
            self.see(expert, slot, claim)
            after = self.rule.confirmed(self._records[expert], ask_id, slot, peer, claim, now_s)
        else:
            after = self.rule.denied(before, ask_id)
        self._records[expert] = after
        if after.ask is None:
            self.asking.discard(expert)
        released = before.claim is not None and after.claim is None
        if released:
            self._changed_layers.add(expert.layer)
        return released

    def expire(self, now_s: float) -> list[ExpertId]:
        """Forget questions whose time is over; returns their experts."""
        over = []
        for expert in list(self.asking):
            record = self._records[expert] = self.rule.expire(self._records[expert], now_s)
            if record.ask is None:
                self.asking.discard(expert)
                over.append(expert)
        return over

    def ask_deadline_s(self) -> float:
        """When the next question's time is over."""
        asks = (self._records[expert].ask for expert in self.asking)
        return min((ask.until_s for ask in asks if ask is not None), default=float("inf"))

    # -- what must be written and told ------------------------------------------------------------

    def flush(self) -> list[Persist | Tell]:
        """What the changes since the last time demand: written first, then told."""
        out: list[Persist | Tell] = []
        for layer in self._changed_layers:
            self._minted[layer] = self._minted_in(layer)
        if self._must_persist:
            layers = {layer: minted for layer, minted in sorted(self._minted.items()) if minted}
            out.append(Persist(CustodyState(self._model_digest, self.life.node, self.life.generation, layers)))
        claims = [self._claims_of(layer) for layer in sorted(self._changed_layers)]
        if claims:
            out.append(Tell(tuple(claims)))
        self._changed_layers.clear()
        self._must_persist = False
        return out

    def _minted_in(self, layer: int) -> list[MintedClaim]:
        """What the state file says of one layer."""
        entries = []
        for expert in self._experts_of[layer]:
            record = self._records[expert]
            for slot, epoch in enumerate(record.minted):
                if epoch:
                    stands = record.claim is not None and record.slot == slot
                    entries.append(MintedClaim(expert.index, slot, epoch, stands))
        return entries

    def _claims_of(self, layer: int) -> Claims:
        """What gossip says of one layer."""
        stamps = {}
        for expert in self._experts_of[layer]:
            record = self._records[expert]
            if record.claim is not None:
                stamps[expert.index] = stamp_of(record.slot, record.claim)
        return Claims.of(layer, stamps)

    def _restore(self, expert: ExpertId, claims: list[MintedClaim]) -> None:
        minted = list(_BLANK.minted)
        for claim in claims:
            minted[claim.slot] = claim.epoch
        self._records[expert] = self.rule.restarted(Custody(minted=tuple(minted)), disk=True)
        self._changed_layers.add(expert.layer)
        if any(claim.standing for claim in claims):
            self.restored.add(expert)
