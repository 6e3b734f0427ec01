"""One expert, a few nodes, and everything that can happen to them: the state space of the custody rule.

The transitions of a node are those of the rule that the product runs (`meshmoe.custody.rule`), or of a mutant of it.
What stands here is only the world around them, and it is as hostile as the fault model allows:

- *Network.* What was said once can arrive at any later time, any number of times, or never: claims and answers are
  grow-only sets, questions are answered at any moment while they are out. Answers to questions that are over are
  forgotten, because the rule does not look at them; ``stale_answers`` keeps them, for mutants that do.
- *Weights* can be had at any time from anywhere, and are lost only by dropping or crashing. So a violation is never
  hidden by weights that could not travel, and none is missed, because a lost expert is noticed in the same state.
- *Suspicion* may be false at any time: whoever holds the weights may mint a claim, whoever has one may ask.
- *Crashes* restart the node at once with nothing in memory, with or without its disk; a node that stays down is one
  that does nothing. A repair window opens when a custodian crashes. It closes when every slot has a standing claim
  again and no question from before the crash is out any more (one suspicion timeout has gone by). Within it, fewer
  custodians may crash than there are slots.

Two kinds of run. A *concrete* one has real claims, numbers of questions, generations and disks, each of them bounded.
An *abstract* one forgets all of these after every step: a node may mint a claim of any epoch, as though gossip had
told it anything at all, and crashes and questions are without number; only epochs are bounded. Weights come by
themselves: a node that has them can do all that a node without can. What is safe in the abstract is safe whatever the
gossip says.

For speed a state holds small integers that stand for records, claims and answers (`Index`), and what a record can do by
itself is worked out once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import cache
from typing import Generic, NamedTuple, TypeVar

from meshmoe.core.ids import NodeId
from meshmoe.custody.claims import NO_CLAIM, AskId, Claim, Custody, Life
from meshmoe.custody.rule import CustodyRule

SOON_S = 1.0
"""Deadline of every question; the clock stands at 0, and time passes by moving a deadline into the past."""


class Bounds(NamedTuple):
    """How far a run goes.

    Attributes:
        nodes: Nodes; the last ``slots`` of them start as custodians.
        slots: Slots of the expert.
        epochs: Greatest epoch minted; the initial claims have 1.
        asks: Questions of one life (concrete runs only).
        crashes: Crashes in all (concrete runs only).
        abstract: See the module's text.
        surplus: Any node may at any time believe that only one slot is wanted. Then no custodian may crash.
        stale_answers: Keep answers to questions that are over.
    """

    nodes: int = 3
    slots: int = 2
    epochs: int = 2
    asks: int = 1
    crashes: int = 1
    abstract: bool = False
    surplus: bool = False
    stale_answers: bool = False


class Peer(NamedTuple):
    """One node: its record of the expert, and its life."""

    custody: Custody
    generation: int


class Answer(NamedTuple):
    """An answer under way, and to whom."""

    to: int
    id: AskId
    slot: int
    peer: NodeId
    claim: Claim


class State(NamedTuple):
    """The world.

    Attributes:
        peers: The nodes' `Peer` records, as indices.
        claims: Every claim ever published, with its slot: the index of a frozenset (empty in abstract runs).
        answers: Every answer ever sent, as indices.
        crashes_in_window: Custodians that crashed in the open repair window.
        crashes: All crashes so far (0 in abstract runs).
        old_asks: Bit set of the nodes whose question was out when a custodian crashed last.
    """

    peers: tuple[int, ...]
    claims: int
    answers: frozenset[int]
    crashes_in_window: int
    crashes: int
    old_asks: int


class Step(NamedTuple):
    """What one node can do by itself: its name, the record then, the claims then, whether the question is over."""

    label: str
    peer: int
    claims: int
    asked: bool


class ViolationError(Exception):
    """A transition that breaks an invariant by itself."""


_T = TypeVar("_T", bound=Hashable)


class Index(Generic[_T]):
    """Small integers for values, in both directions."""

    def __init__(self) -> None:
        self.values: list[_T] = []
        self._number_of: dict[_T, int] = {}

    def number(self, value: _T) -> int:
        """The integer that stands for ``value``."""
        number = self._number_of.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


class World:
    """The transition relation of one rule within bounds."""

    def __init__(self, rule: CustodyRule, bounds: Bounds) -> None:
        self.rule = rule
        self.bounds = bounds
        self.names = [NodeId(chr(ord("a") + i)) for i in range(bounds.nodes)]
        self.peers: Index[Peer] = Index()
        self.claim_sets: Index[frozenset[tuple[int, Claim]]] = Index()
        self.answers: Index[Answer] = Index()
        # What depends on few small integers is remembered.
        self.own_steps = cache(lambda i, peer, claims: list(self._own_steps(i, peer, claims)))
        self.crash_steps = cache(lambda i, peer: list(self._crash_steps(i, peer)))
        self.answer_of = cache(self._answer_of)
        self.told = cache(self._told)
        self.slot_of = cache(self._slot_of)
        self.is_custodian = cache(self._is_custodian)
        self.asking = cache(lambda peer: self.peers.values[peer].custody.ask is not None)

    def initial(self) -> State:
        """The last nodes are custodians, one a slot; the others, whose claims lose ties, have nothing."""
        peers = []
        claims = set()
        for i, name in enumerate(self.names):
            custody, slot = Custody(), self.bounds.nodes - 1 - i
            if slot < self.bounds.slots:
                custody = self.rule.mint(self.rule.loaded(custody), slot, Life(name, 0))
                claims.add((slot, custody.claim or NO_CLAIM))
            peers.append(self.peers.number(Peer(self._abstracted(custody), 0)))
        published = self.claim_sets.number(frozenset() if self.bounds.abstract else frozenset(claims))
        return State(tuple(peers), published, frozenset(), 0, 0, 0)

    def violation(self, state: State) -> str | None:
        """Why the state is bad, in words; None if it is good."""
        custodians = sum(self.is_custodian(peer) for peer in state.peers)
        least = 1 if self.bounds.surplus else self.bounds.slots - state.crashes_in_window
        if custodians < least:
            return (
                f"{custodians} live custodians, {least} are due after {state.crashes_in_window} crashes in the window"
            )
        return None

    def successors(self, state: State) -> Iterator[tuple[str, State]]:
        """Everything that can happen next, with what to call it."""
        for i, peer in enumerate(state.peers):
            for step in self.own_steps(i, peer, state.claims):
                yield step.label, self._after(state, i, step)
            if self.asking(peer):
                yield from self._answers(state, i)
            for answer in state.answers:
                heard = self.told(i, peer, answer)
                if heard is not None:
                    yield heard.label, self._after(state, i, heard._replace(claims=state.claims))
            yield from self._crashes(state, i)

    def _own_steps(self, i: int, peer: int, claims: int) -> Iterator[Step]:
        """What node ``i`` does by itself, or on hearing of a claim."""
        custody, generation = self.peers.values[peer]
        name, life = self.names[i], Life(self.names[i], generation)
        published = self.claim_sets.values[claims]

        def step(label: str, then: Custody, *, claims: int = claims, asked: bool = False) -> Step:
            return Step(f"{name} {label}", self._number(i, custody, then, generation), claims, asked)

        if not custody.resident:
            yield step("loads the weights", self.rule.loaded(custody))
        elif not self.bounds.abstract and self.rule.may_drop(custody):
            yield step("drops the weights", self.rule.dropped(custody))
        for slot in range(self.bounds.slots):
            for heard in self._claims_to_outbid(published, slot) if self.rule.may_mint(custody, slot) else ():
                minted = self.rule.mint(self.rule.see(custody, slot, heard), slot, life)
                assert minted.claim is not None
                if minted.claim.epoch > self.bounds.epochs:
                    continue
                entry = (slot, minted.claim)
                if entry in published:
                    raise ViolationError(f"{name} mints claim {minted.claim.epoch} of slot {slot} a second time")
                more = claims if self.bounds.abstract else self.claim_sets.number(published | {entry})
                yield step(f"mints claim {minted.claim.epoch} in slot {slot}", minted, claims=more)
        if custody.ask is not None:
            late = custody._replace(ask=custody.ask._replace(until_s=-SOON_S))
            yield step("waits in vain for an answer", self.rule.expire(late, 0.0), asked=True)
        if self.bounds.abstract or custody.asks < self.bounds.asks:
            for slot, whom in sorted(self._whom_to_ask(published, custody, i)):
                yield step(
                    f"asks {whom} about slot {slot}", self.rule.ask(custody, slot, whom, life, SOON_S), asked=True
                )
        for label, wrong in getattr(self.rule, "mischief", _no_mischief)(custody, published):
            yield step(label, wrong)

    def _answers(self, state: State, i: int) -> Iterator[tuple[str, State]]:
        """The node that node ``i`` has asked answers."""
        ask = self.peers.values[state.peers[i]].custody.ask
        assert ask is not None
        answer = self.answer_of(i, state.peers[i], state.peers[self.names.index(ask.peer)])
        if answer is not None and answer not in state.answers:
            epoch = self.answers.values[answer].claim.epoch
            label = f"{ask.peer} answers {self.names[i]}: my claim {epoch} stands in slot {ask.slot}"
            yield label, state._replace(answers=state.answers | {answer})

    def _answer_of(self, i: int, peer: int, asked_peer: int) -> int | None:
        ask = self.peers.values[peer].custody.ask
        asked = self.peers.values[asked_peer].custody
        assert ask is not None
        claim = self.rule.answer(asked, ask.slot)
        if claim is None:
            return None
        if not asked.resident:
            raise ViolationError(f"{ask.peer} answers for weights that it lacks")
        return self.answers.number(Answer(i, ask.id, ask.slot, ask.peer, claim))

    def _told(self, i: int, peer: int, number: int) -> Step | None:
        custody, generation = self.peers.values[peer]
        answer = self.answers.values[number]
        if answer.to != i:
            return None
        told = self.rule.confirmed(custody, answer.id, answer.slot, answer.peer, answer.claim, 0.0)
        if told == custody:
            return None
        label = f"{self.names[i]} hears {answer.peer}'s answer and releases its claim"
        return Step(label, self._number(i, custody, told, generation), 0, asked=True)

    def _crashes(self, state: State, i: int) -> Iterator[tuple[str, State]]:
        """Node ``i`` crashes and starts again, if the fault model lets it."""
        peer = state.peers[i]
        if state.crashes >= self.bounds.crashes and not self.bounds.abstract:
            return
        old_asks, in_window = state.old_asks & ~(1 << i), state.crashes_in_window
        if self.slot_of(peer) is not None:
            in_window += 1
            if in_window >= (1 if self.bounds.surplus else self.bounds.slots):
                return
            old_asks = sum(1 << j for j, other in enumerate(state.peers) if j != i and self.asking(other))
        answers = self._without_answers(state.answers, i) if self.asking(peer) else state.answers
        crashes = 0 if self.bounds.abstract else state.crashes + 1
        for label, again in self.crash_steps(i, peer):
            peers = _put(state.peers, i, again)
            yield label, self._settled(peers, state.claims, answers, in_window, crashes, old_asks)

    def _crash_steps(self, i: int, peer: int) -> Iterator[tuple[str, int]]:
        custody, generation = self.peers.values[peer]
        for disk in (False,) if self.bounds.abstract else (True, False):
            again = self.rule.restarted(custody, disk=disk)
            if disk and any(new < old for new, old in zip(again.minted, custody.minted, strict=True)):
                raise ViolationError(f"{self.names[i]} restarts with its disk and has forgotten what it minted")
            number = self.peers.number(Peer(self._abstracted(again), 0 if self.bounds.abstract else generation + 1))
            yield f"{self.names[i]} crashes and restarts {'with' if disk else 'without'} its disk", number

    def _claims_to_outbid(self, published: frozenset[tuple[int, Claim]], slot: int) -> list[Claim]:
        """Claims that a node may have heard of when it mints: one of each epoch, and none."""
        if self.bounds.abstract:
            return [Claim(epoch, NodeId(""), 0) for epoch in range(self.bounds.epochs)]
        by_epoch = {claim.epoch: claim for where, claim in sorted(published) if where == slot}
        return [NO_CLAIM, *by_epoch.values()]

    def _whom_to_ask(
        self, published: frozenset[tuple[int, Claim]], custody: Custody, i: int
    ) -> set[tuple[int, NodeId]]:
        """Slots and nodes that node ``i`` may ask about a claim that it heard of."""
        slots_wanted = 1 if self.bounds.surplus else self.bounds.slots
        heard = set(published)
        if self.bounds.abstract:
            epoch = self.bounds.epochs + 1
            others = [name for name in self.names if name != self.names[i]]
            heard = {(slot, Claim(epoch, name, 0)) for slot in range(self.bounds.slots) for name in others}
        return {(slot, claim.node) for slot, claim in heard if self.rule.may_ask(custody, slot, claim, slots_wanted)}

    def _number(self, i: int, before: Custody, then: Custody, generation: int) -> int:
        """The index of a record after a step, which must not have forgotten a claim."""
        known, knew = (*then.seen, *then.minted), (*before.seen, *before.minted)
        if any(new < old for new, old in zip(known, knew, strict=True)):
            raise ViolationError(f"{self.names[i]} has forgotten a claim that it knew of")
        return self.peers.number(Peer(self._abstracted(then), generation))

    def _after(self, state: State, i: int, step: Step) -> State:
        """The state after a node's own step."""
        old_asks = state.old_asks & ~(1 << i) if step.asked else state.old_asks
        return self._settled(
            _put(state.peers, i, step.peer),
            step.claims,
            self._without_answers(state.answers, i) if step.asked else state.answers,
            state.crashes_in_window,
            state.crashes,
            old_asks,
        )

    def _without_answers(self, answers: frozenset[int], i: int) -> frozenset[int]:
        """Forget answers to a question of node ``i`` that is over."""
        if not answers or self.bounds.stale_answers:
            return answers
        return frozenset(number for number in answers if self.answers.values[number].to != i)

    def _settled(
        self, peers: tuple[int, ...], claims: int, answers: frozenset[int], in_window: int, crashes: int, old_asks: int
    ) -> State:
        """A state, with the repair window closed if its work is done."""
        if in_window and not old_asks and len({self.slot_of(peer) for peer in peers} - {None}) == self.bounds.slots:
            in_window = 0
        return State(peers, claims, answers, in_window, crashes, old_asks)

    def _slot_of(self, peer: int) -> int | None:
        """Where a claim of the node stands."""
        custody = self.peers.values[peer].custody
        return None if custody.claim is None else custody.slot

    def _is_custodian(self, peer: int) -> bool:
        """Whether the node has promised the weights and has them."""
        custody = self.peers.values[peer].custody
        return custody.claim is not None and custody.resident

    def _abstracted(self, custody: Custody) -> Custody:
        """In an abstract run, the record with weights, and without its memory of claims and questions past."""
        if not self.bounds.abstract:
            return custody
        blank = Custody()
        custody = self.rule.loaded(custody)
        if custody.ask is not None:
            custody = custody._replace(ask=custody.ask._replace(id=AskId(0, 1)))
        return custody._replace(minted=blank.minted, seen=blank.seen, asks=0)


def _no_mischief(_custody: Custody, _claims: frozenset[tuple[int, Claim]]) -> list[tuple[str, Custody]]:
    return []


def _put(peers: tuple[int, ...], i: int, peer: int) -> tuple[int, ...]:
    return (*peers[:i], peer, *peers[i + 1 :])
