"""The exchange as a machine without I/O: events and the time go in, effects come out.

A node is in one of three states::

    idle      --propose-->            proposed (waits for an answer; still free to change its mind)
    idle      --accept a proposal-->  bound    (its plan is frozen until the proposer's verdict)
    proposed  --accepted-->           idle     (verdict "done": the plan changes here, now)
    proposed  --anything else, or no answer in time-->  idle  (verdict "off")
    bound     --verdict, or the proposer is gone-->     idle  ("done": the plan changes here)

*One decides.* Only the proposer can commit, so the ends cannot differ for longer than a verdict takes; two repeats its
answer until it has one, and a proposer answers every such repetition with what it decided. It needs to remember only
the last exchange it committed with each peer, since a bound peer begins no other. Ids rise, so an old proposal that
arrives late is known for what it is.

*Crossing.* If two nodes propose to each other, the proposal of the smaller name stands: its receiver drops its own and
answers, and the other one's is answered "busy". A cycle of three or more waits for nobody: everyone in it says "busy".

*Safety.* Ownership of an expert passes only by lots that both ends apply. Between the two moments at which they apply,
what one gave is in nobody's plan, and what it took in both. If two loses sight of one just then, it keeps its old plan,
and that may stay so until somebody notices (`meshmoe.placement.live`) and says `Repair`. These are plans, though:
weights are dropped by custody's rule alone (`meshmoe.custody`), which asks the new custodian first and repairs what has
none, so a plan can be wrong but no expert can be lost by it.

*Quiet.* The machine is quiet when no peer with its present plan offers a gain to this node's present plan and demand;
of many peers the most promising ones are asked (`ExchangeConfig.asked_max`). Weights should not move before: plans that
change twice move once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.placement.bargain import Lot
from meshmoe.placement.exchange.config import ExchangeConfig
from meshmoe.placement.exchange.effects import ExchangeEffect, PlanChanged, SendTo
from meshmoe.placement.exchange.events import ExchangeEvent, Heard, OwnTrace, PeersChanged, Repair, Wake
from meshmoe.placement.exchange.messages import ExchangeAnswer, ExchangeProposal, ExchangeVerdict
from meshmoe.placement.exchange.plan import Plan
from meshmoe.placement.exchange.settlement import agree, best_lots, digest, is_plausible
from meshmoe.placement.exchange.standpoint import Standpoint
from meshmoe.placement.table import Mask
from meshmoe.placement.trace import Trace
from meshmoe.placement.world import ModelShape, NodeSpec


@dataclass
class _Proposed:
    """This node is *one*."""

    peer: NodeId
    message: ExchangeProposal
    sent: int
    again_s: float


@dataclass
class _Bound:
    """This node is *two*."""

    peer: NodeId
    answer: ExchangeAnswer
    chosen: list[Lot]
    gain: int
    again_s: float


class ExchangeMachine:
    """One node's part in agreeing on the plan. See the module's text."""

    def __init__(
        self,
        config: ExchangeConfig,
        node: NodeId,
        shape: ModelShape,
        spec: NodeSpec,
        trace: Trace,
        held: Mask,
        owned: Mask,
        first_id: int,
        rng: random.Random,
        now: float,
    ) -> None:
        """Start with a plan.

        Args:
            config: The same on all nodes.
            node: This one.
            shape: The model.
            spec: This node's means.
            trace: Its demand.
            held, owned: Its plan to begin with; over all nodes, every expert must have one owner.
            first_id: Greater than all ids that earlier lives of this node used.
            rng: Spreads proposals in time, and picks somebody else at times.
            now: Monotonic seconds.
        """
        self._config, self._node, self._shape, self._rng = config, node, shape, rng
        self.plan = Plan(shape, spec.capacity_bytes, held.copy(), owned.copy())
        self._stand = Standpoint(config, node, shape, spec, trace, self.plan)
        self._id = self._first_id = first_id
        self._exchange: _Proposed | _Bound | None = None
        self._committed: dict[NodeId, int] = {}
        self._finished: dict[NodeId, int] = {}
        self._thought = 0
        """Grows with this node's demand; with the versions of two plans it names what an attempt was about."""
        self._tried: dict[NodeId, tuple[int, int, int]] = {}
        self._vain = (-1, 0, 0)
        """Of which plan and demand of this node, how many attempts came to nothing."""
        self._propose_s = now + self._pause_s()
        self._now = now
        self._out: list[ExchangeEffect] = []

    # -- what others may ask ------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """Whether nothing is in flight and no peer is left with whom an exchange might gain."""
        return self._exchange is None and (
            self._has_asked_enough() or all(self._is_tried(peer) for peer in self._stand.peers)
        )

    @property
    def idle(self) -> bool:
        """Whether no exchange is under way."""
        return self._exchange is None

    def next_deadline(self) -> float:
        """When to `Wake` next; infinite while there is nothing to do."""
        if self._exchange is not None:
            return self._exchange.again_s
        return float("inf") if self.quiet or self._stand.links is None else self._propose_s

    # -- the machine ------------------------------------------------------------

    def handle(self, event: ExchangeEvent, now: float) -> list[ExchangeEffect]:
        """Take in one event.

        Args:
            event: What happened.
            now: Monotonic seconds, never less than before.

        Returns:
            What to do about it, in order.
        """
        self._now, self._out = now, []
        match event:
            case Wake():
                self._wake()
            case Heard():
                self._hear(event.sender, event.message)
            case OwnTrace():
                self._stand.trace(event.trace, event.away_s)
                self._thought += 1
            case PeersChanged():
                self._stand.hear(event.peers, event.links)
                if self._exchange is not None and self._exchange.peer not in event.peers:
                    self._end()
            case Repair():
                self._repair(event)
        return self._out

    def _repair(self, repair: Repair) -> None:
        if self._exchange is not None:
            return
        before = self.plan.held, self.plan.owned
        if self.plan.repair(repair.adopt, repair.disown):
            self._tell_change(None, before, 0.0)
            self._propose_s = self._now + self._pause_s()  # the others must hear of it first

    def _wake(self) -> None:
        exchange = self._exchange
        if exchange is None:
            if self._now >= self._propose_s and self._stand.links is not None:
                if self._choose_copies():
                    self._propose_s = self._now + self._pause_s()  # the others must hear of it first
                else:
                    self._propose()
        elif self._now >= exchange.again_s:
            exchange.again_s = self._now + self._config.retry_s
            if isinstance(exchange, _Bound):
                self._send(exchange.peer, exchange.answer)
            elif exchange.sent < self._config.tries:
                exchange.sent += 1
                self._send(exchange.peer, exchange.message)
            else:
                self._call_off(exchange)

    def _hear(self, sender: NodeId, message: Message) -> None:
        if sender not in self._stand.peers:
            return
        match message:
            case ExchangeProposal():
                self._proposal(sender, message)
            case ExchangeAnswer():
                self._answer(sender, message)
            case ExchangeVerdict():
                self._verdict(sender, message)

    # -- as one ------------------------------------------------------------

    def _propose(self) -> None:
        peer = self._partner()
        self._propose_s = self._now + self._pause_s()
        if peer is None:
            return
        side = self._stand.side(peer)
        self._id += 1
        known = self._stand.bystanders(peer)
        lots = [*self._stand.division(side, peer, known), *side.propose()]
        lots, prices = best_lots(lots, self._stand.prices(side, lots, proposer=True, known=known))
        message = ExchangeProposal(
            self._id,
            self.plan.version,
            self._stand.peers[peer].version,
            lots,
            prices,
            self.plan.room_bytes,
            self._stand.cost(side),
            self._stand.sketch_known(peer),
            tuple(known),
        )
        self._exchange = _Proposed(peer, message, 1, self._now + self._config.retry_s)
        self._send(peer, message)

    def _partner(self) -> NodeId | None:
        """The linked peer with the best predicted gain, or now and then anyone."""
        if self._has_asked_enough():
            return None
        open_ = sorted(peer for peer in self._stand.peers if not self._is_tried(peer))
        if not open_:
            return None
        if self._rng.random() < self._config.anyone:
            return self._rng.choice(open_)
        near = [peer for peer in open_ if self._stand.is_near(peer)]
        promises = self._stand.promises()
        return max(near or open_, key=lambda peer: (promises[peer], peer))

    def _answer(self, sender: NodeId, answer: ExchangeAnswer) -> None:
        exchange = self._exchange
        if not isinstance(exchange, _Proposed) or (exchange.peer, exchange.message.id) != (sender, answer.id):
            if answer.reply == "accepted":  # of an exchange that is over here: it waits for the verdict
                self._send(sender, ExchangeVerdict(answer.id, self._committed.get(sender) == answer.id))
            return
        news = answer.sketch is not None and self._stand.hear_sketch(sender, answer.sketch)
        if answer.reply == "idle" and not news:  # with a sketch that is new, there is more to propose
            self._mark_tried(sender, exchange.message.two_version)
        if answer.reply != "accepted":
            self._end()
            return
        agreed = agree(exchange.message, answer, self._shape)
        if agreed is None or digest(agreed[0]) != answer.digest or not self.plan.allows(agreed[0], one=True):
            self._call_off(exchange)
            return
        self._committed[sender] = answer.id
        self._send(sender, ExchangeVerdict(answer.id, True))
        self._change(sender, *agreed, one=True)
        self._end()

    def _call_off(self, exchange: _Proposed) -> None:
        self._send(exchange.peer, ExchangeVerdict(exchange.message.id, False))
        self._end()

    # -- as two ------------------------------------------------------------

    def _proposal(self, sender: NodeId, proposal: ExchangeProposal) -> None:
        exchange = self._exchange
        if proposal.id <= self._finished.get(sender, -1):
            return  # late: its proposer has decided
        if isinstance(exchange, _Bound):
            if (exchange.peer, exchange.answer.id) == (sender, proposal.id):
                self._send(sender, exchange.answer)
            else:
                self._send(sender, ExchangeAnswer(proposal.id, "busy"))
            return
        if exchange is not None:
            if exchange.peer != sender or self._node < sender:
                self._send(sender, ExchangeAnswer(proposal.id, "busy"))
                return
            self._end()  # crossing: the smaller name's stands; an answer to ours is told "off"
        if self._stand.links is None:
            self._send(sender, ExchangeAnswer(proposal.id, "busy"))
        elif (proposal.one_version, proposal.two_version) != (self._stand.peers[sender].version, self.plan.version):
            self._send(sender, ExchangeAnswer(proposal.id, "stale"))
        elif len(proposal.lots) != len(proposal.prices) or not is_plausible(proposal.lots, self._shape):
            self._send(sender, ExchangeAnswer(proposal.id, "refused"))
        else:
            self._accept(sender, proposal)

    def _accept(self, sender: NodeId, proposal: ExchangeProposal) -> None:
        side = self._stand.side(sender)
        own = side.own_lots()
        known = self._stand.bystanders(sender)
        own, own_prices = best_lots(own, self._stand.prices(side, own, proposer=False, known=known, alone=True))
        known = self._stand.bystanders(sender, proposal.counted)
        theirs = self._stand.prices(side, proposal.lots, proposer=False, known=known, counted=proposal.counted)
        prices = [*theirs, *own_prices]
        draft = ExchangeAnswer(proposal.id, "accepted", own, prices, self.plan.room_bytes)
        agreed = agree(proposal, draft, self._shape)
        assert agreed is not None  # lengths are ours
        chosen, gain = agreed
        version = self._first_id + 1 + self._thought
        sketch = self._stand.sketch(version) if proposal.sketch_known != version else None
        if not chosen or gain <= self._config.gain_min * (proposal.cost + self._stand.cost(side)):
            self._send(sender, ExchangeAnswer(proposal.id, "idle", sketch=sketch))
            return
        if not self.plan.allows(chosen, one=False):
            self._send(sender, ExchangeAnswer(proposal.id, "refused"))
            return
        answer = ExchangeAnswer(proposal.id, "accepted", own, prices, self.plan.room_bytes, digest(chosen), sketch)
        self._exchange = _Bound(sender, answer, chosen, gain, self._now + self._config.retry_s)
        self._send(sender, answer)

    def _verdict(self, sender: NodeId, verdict: ExchangeVerdict) -> None:
        exchange = self._exchange
        if not isinstance(exchange, _Bound) or (exchange.peer, exchange.answer.id) != (sender, verdict.id):
            return
        self._finished[sender] = verdict.id
        if verdict.done:
            self._change(sender, exchange.chosen, exchange.gain, one=False)
        self._end()

    # -- both ------------------------------------------------------------

    def _choose_copies(self) -> bool:
        """Use the room that ownership leaves, by this node's own choice; adopted where it is clearly better."""
        found = self._stand.better_copies()
        if found is None:
            return False
        added, dropped = found.held & ~self.plan.held, self.plan.held & ~found.held
        self.plan.set_copies(found.held)
        self._out.append(PlanChanged(self.plan.version, None, _ids(added), _ids(dropped), (), (), 1e3 * found.gain))
        return True

    def _change(self, peer: NodeId, chosen: list[Lot], gain: int, *, one: bool) -> None:
        before = self.plan.held.copy(), self.plan.owned.copy()
        self.plan.apply(chosen, one=one)
        self._tell_change(peer, before, gain / 1e6)

    def _tell_change(self, partner: NodeId | None, before: tuple[Mask, Mask], gain_ms_per_s: float) -> None:
        (held_before, owned_before), held, owned = before, self.plan.held, self.plan.owned
        self._out.append(
            PlanChanged(
                self.plan.version,
                partner,
                _ids(held & ~held_before),
                _ids(held_before & ~held),
                _ids(owned & ~owned_before),
                _ids(owned_before & ~owned),
                gain_ms_per_s,
            )
        )

    def _end(self) -> None:
        self._exchange = None
        self._propose_s = self._now + self._pause_s()

    def _is_tried(self, peer: NodeId) -> bool:
        about = (self.plan.version, self._stand.peers[peer].version, self._thought)
        return self._tried.get(peer) == about

    def _mark_tried(self, peer: NodeId, version: int) -> None:
        self._tried[peer] = (self.plan.version, version, self._thought)
        about, count = self._vain[:2], self._vain[2]
        same = about == (self.plan.version, self._thought)
        self._vain = (self.plan.version, self._thought, count + 1 if same else 1)

    def _has_asked_enough(self) -> bool:
        return self._vain[:2] == (self.plan.version, self._thought) and self._vain[2] >= self._config.asked_max

    def _pause_s(self) -> float:
        return self._config.pause_s * self._rng.uniform(0.5, 1.5)

    def _send(self, peer: NodeId, message: Message) -> None:
        self._out.append(SendTo(peer, message))


def _ids(mask: Mask) -> tuple[ExpertId, ...]:
    return tuple(ExpertId(int(layer), int(index)) for layer, index in np.argwhere(mask))
