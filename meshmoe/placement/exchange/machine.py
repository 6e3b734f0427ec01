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
and that may stay so. These are plans, though: weights are dropped by custody's rule alone (`meshmoe.custody`), which
asks the new custodian first and repairs what has none, so a plan can be wrong but no expert can be lost by it.

*Quiet.* The machine is quiet when no peer with its present plan offers a gain to this node's present plan and demand,
and weights should not move before: plans that change twice move once.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.placement.bargain import PRICE_SCALE, Lot, settle
from meshmoe.placement.exchange.config import ExchangeConfig
from meshmoe.placement.exchange.effects import ExchangeEffect, PlanChanged, SendTo
from meshmoe.placement.exchange.events import ExchangeEvent, Heard, Links, OwnTrace, PeerPlan, PeersChanged, Wake
from meshmoe.placement.exchange.messages import (
    LOTS_MAX,
    ExchangeAnswer,
    ExchangeProposal,
    ExchangeVerdict,
    encoded_lots,
)
from meshmoe.placement.exchange.plan import Plan
from meshmoe.placement.lots import Outlook, Side
from meshmoe.placement.policies.base import layer_bytes
from meshmoe.placement.pricing import Mask, Pricer, fill
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
        self._config, self._node, self._shape, self._spec, self._rng = config, node, shape, spec, rng
        self._trace = trace
        self.plan = Plan(shape, spec.capacity_bytes, held.copy(), owned.copy())
        self._peers: dict[NodeId, PeerPlan] = {}
        self._links: Links | None = None
        self._id = first_id
        self._exchange: _Proposed | _Bound | None = None
        self._committed: dict[NodeId, int] = {}
        self._finished: dict[NodeId, int] = {}
        self._thought = 0
        """Grows with this node's demand; with the versions of two plans it names what an attempt was about."""
        self._tried: dict[NodeId, tuple[int, int, int]] = {}
        self._propose_s = now + self._pause_s()
        self._now = now
        self._out: list[ExchangeEffect] = []

    # -- what others may ask ------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """Whether nothing is in flight and no peer is left with whom an exchange might gain."""
        return self._exchange is None and all(self._is_tried(peer) for peer in self._peers)

    def next_deadline(self) -> float:
        """When to `Wake` next; infinite while there is nothing to do."""
        if self._exchange is not None:
            return self._exchange.again_s
        return float("inf") if self.quiet or self._links is None else self._propose_s

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
                self._trace = event.trace
                self._thought += 1
            case PeersChanged():
                self._peers, self._links = dict(event.peers), event.links
                if self._exchange is not None and self._exchange.peer not in self._peers:
                    self._end()
        return self._out

    def _wake(self) -> None:
        exchange = self._exchange
        if exchange is None:
            if self._now >= self._propose_s and self._links is not None:
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
        if sender not in self._peers:
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
        side = self._side(peer)
        lots = side.propose()
        prices = side.prices(lots, proposer=True)
        lots, prices = _best(lots, prices)
        self._id += 1
        message = ExchangeProposal(
            self._id, self.plan.version, self._peers[peer].version, lots, prices, self.plan.room_bytes, self._cost(side)
        )
        self._exchange = _Proposed(peer, message, 1, self._now + self._config.retry_s)
        self._send(peer, message)

    def _partner(self) -> NodeId | None:
        """The linked peer with the best predicted gain, or now and then anyone."""
        assert self._links is not None
        open_ = sorted(peer for peer in self._peers if not self._is_tried(peer))
        if not open_:
            return None
        if self._rng.random() < self._config.anyone:
            return self._rng.choice(open_)
        me = self._links.nodes.index(self._node)
        near = [peer for peer in open_ if self._links.near[me, self._links.nodes.index(peer)]]
        return max(near or open_, key=lambda peer: (self._promise(peer), peer))

    def _promise(self, peer: NodeId) -> float:
        """Calls a second that would be at home if each of the two owned what it calls more often than the other."""
        theirs, mine = self._peers[peer], self._trace.demand(self._shape.experts)
        takes = np.where(theirs.owned & ~self.plan.held, mine - theirs.demand, 0.0)
        gives = np.where(self.plan.owned & ~theirs.held, theirs.demand - mine, 0.0)
        return float(np.maximum(takes, 0).sum() + np.maximum(gives, 0).sum())

    def _answer(self, sender: NodeId, answer: ExchangeAnswer) -> None:
        exchange = self._exchange
        if not isinstance(exchange, _Proposed) or (exchange.peer, exchange.message.id) != (sender, answer.id):
            if answer.reply == "accepted":  # of an exchange that is over here: it waits for the verdict
                self._send(sender, ExchangeVerdict(answer.id, self._committed.get(sender) == answer.id))
            return
        if answer.reply == "idle":
            self._mark_tried(sender, exchange.message.two_version)
        if answer.reply != "accepted":
            self._end()
            return
        agreed = _agree(exchange.message, answer, self._shape)
        if agreed is None or _digest(agreed[0]) != answer.digest or not self.plan.allows(agreed[0], one=True):
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
        if self._links is None:
            self._send(sender, ExchangeAnswer(proposal.id, "busy"))
        elif (proposal.one_version, proposal.two_version) != (self._peers[sender].version, self.plan.version):
            self._send(sender, ExchangeAnswer(proposal.id, "stale"))
        elif len(proposal.lots) != len(proposal.prices) or not self._plausible(proposal.lots):
            self._send(sender, ExchangeAnswer(proposal.id, "refused"))
        else:
            self._accept(sender, proposal)

    def _accept(self, sender: NodeId, proposal: ExchangeProposal) -> None:
        side = self._side(sender)
        own = side.own_lots()
        own, own_prices = _best(own, side.prices(own, proposer=False))
        prices = [*side.prices(proposal.lots, proposer=False), *own_prices]
        draft = ExchangeAnswer(proposal.id, "accepted", own, prices, self.plan.room_bytes)
        agreed = _agree(proposal, draft, self._shape)
        assert agreed is not None  # lengths are ours
        chosen, gain = agreed
        if not chosen or gain <= self._config.gain_min * (proposal.cost + self._cost(side)):
            self._send(sender, ExchangeAnswer(proposal.id, "idle"))
            return
        if not self.plan.allows(chosen, one=False):
            self._send(sender, ExchangeAnswer(proposal.id, "refused"))
            return
        answer = ExchangeAnswer(proposal.id, "accepted", own, prices, self.plan.room_bytes, _digest(chosen))
        self._exchange = _Bound(sender, answer, chosen, gain, self._now + self._config.retry_s)
        self._send(sender, answer)

    def _plausible(self, lots: list[Lot]) -> bool:
        return all(
            lot.layer < self._shape.layers
            and max((e for part in _parts(lot) for e in part), default=0) < self._shape.experts
            for lot in lots
        )

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
        outlook, me = self._outlook(), self._me()
        pricer = Pricer(self._shape, self._spec, self._trace, outlook.branches(me))
        room = self._spec.capacity_bytes - int(self._shape.expert_bytes[self.plan.owned].sum())
        held = fill(pricer, self.plan.owned, room)
        layers = range(self._shape.layers)
        now, then = (sum(float(pricer.cost(i, mask[i])) for i in layers) for mask in (self.plan.held, held))
        added, dropped = held & ~self.plan.held, self.plan.held & ~held
        charge = float((outlook.regret(me) * dropped).sum())
        charge += float(self._shape.expert_bytes[added].sum()) * self._move_s(min(self._peers, default=self._node))
        if now - then - charge <= self._config.gain_min * now:
            return False
        self.plan.set_copies(held)
        self._out.append(
            PlanChanged(self.plan.version, None, _ids(added), _ids(dropped), (), (), 1e3 * (now - then - charge))
        )
        return True

    def _change(self, peer: NodeId, chosen: list[Lot], gain: int, *, one: bool) -> None:
        before = self.plan.held.copy(), self.plan.owned.copy()
        self.plan.apply(chosen, one=one)
        held, owned = self.plan.held, self.plan.owned
        self._out.append(
            PlanChanged(
                self.plan.version,
                peer,
                _ids(held & ~before[0]),
                _ids(before[0] & ~held),
                _ids(owned & ~before[1]),
                _ids(before[1] & ~owned),
                gain / 1e6,
            )
        )

    def _end(self) -> None:
        self._exchange = None
        self._propose_s = self._now + self._pause_s()

    def _side(self, peer: NodeId) -> Side:
        assert self._links is not None
        outlook = self._outlook()
        other = self._links.nodes.index(peer)
        return Side.of(outlook, self._me(), other, self._spec, self._trace, self._move_s(peer))

    def _outlook(self) -> Outlook:
        assert self._links is not None
        nodes = self._links.nodes
        empty = np.zeros_like(self.plan.held)
        holders, owner = np.zeros((len(nodes), *empty.shape), bool), np.full(empty.shape, -1, np.int64)
        demand = np.zeros((len(nodes), *empty.shape))
        for position, name in enumerate(nodes):
            if name in self._peers:
                peer = self._peers[name]
                holders[position], demand[position] = peer.held, peer.demand
                owner[peer.owned] = position
        me = self._me()
        holders[me], demand[me] = self.plan.held, self._trace.demand(self._shape.experts)
        owner[self.plan.owned] = me
        time_s = self._links.call_s + 2 * self._shape.row_bytes * self._links.byte_s
        np.fill_diagonal(time_s, 0.0)
        return Outlook(self._shape, time_s, self._links.byte_s, self._links.row_s, holders, owner, demand)

    def _me(self) -> int:
        assert self._links is not None
        return self._links.nodes.index(self._node)

    def _move_s(self, peer: NodeId) -> float:
        assert self._links is not None
        return float(self._links.byte_s[self._me(), self._links.nodes.index(peer)]) / self._config.horizon_s

    def _cost(self, side: Side) -> int:
        cost = sum(float(side.pricer.cost(layer, self.plan.held[layer])) for layer in range(self._shape.layers))
        return int(cost * PRICE_SCALE)

    def _is_tried(self, peer: NodeId) -> bool:
        about = (self.plan.version, self._peers[peer].version, self._thought)
        return self._tried.get(peer) == about

    def _mark_tried(self, peer: NodeId, version: int) -> None:
        self._tried[peer] = (self.plan.version, version, self._thought)

    def _pause_s(self) -> float:
        return self._config.pause_s * self._rng.uniform(0.5, 1.5)

    def _send(self, peer: NodeId, message: Message) -> None:
        self._out.append(SendTo(peer, message))


def _agree(proposal: ExchangeProposal, answer: ExchangeAnswer, shape: ModelShape) -> tuple[list[Lot], int] | None:
    """The settlement and its price: a function of the two messages and nothing else. None if they do not fit."""
    lots = [*proposal.lots, *answer.lots]
    if len(answer.prices) != len(lots):
        return None
    ones = [*proposal.prices, *([0] * len(answer.lots))]
    prices = [a + b for a, b in zip(ones, answer.prices, strict=True)]
    chosen = settle(lots, prices, layer_bytes(shape), (proposal.room_bytes, answer.room_bytes))
    return [lots[i] for i in chosen], sum(prices[i] for i in chosen)


def _best(lots: list[Lot], prices: list[int]) -> tuple[list[Lot], list[int]]:
    """As many as a message carries, those with the best prices."""
    if len(lots) <= LOTS_MAX:
        return lots, prices
    keep = sorted(sorted(range(len(lots)), key=lambda i: -prices[i])[:LOTS_MAX])
    return [lots[i] for i in keep], [prices[i] for i in keep]


def _digest(lots: list[Lot]) -> bytes:
    return hashlib.blake2b(encoded_lots(lots), digest_size=16).digest()


def _parts(lot: Lot) -> tuple[tuple[int, ...], ...]:
    return (lot.to_one, lot.to_two, lot.one_adds, lot.one_drops, lot.two_adds, lot.two_drops)


def _ids(mask: Mask) -> tuple[ExpertId, ...]:
    return tuple(ExpertId(int(layer), int(index)) for layer, index in np.argwhere(mask))
