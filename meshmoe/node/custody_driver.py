"""Runs the custody machine: feeds it the view, messages and outcomes, and carries out what it asks for, in order.

One task handles events, in batches: everything that has come in meanwhile is handled, the state is written to disk once
if it must be (before anything that depends on it, as `meshmoe.custody.effects` demands), and then the effects are
carried out. So a slow disk delays custody, and nothing else on the node.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

import trio

from meshmoe.core.endpoints import Lane
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody import (
    CUSTODY_MESSAGES,
    AbandonUnit,
    Adopted,
    CustodyEffect,
    CustodyEvent,
    CustodyMachine,
    Drop,
    Dropped,
    Found,
    Leave,
    LeaveFinished,
    LeaveProgress,
    LoadUnit,
    Lost,
    MigrationEnded,
    OpenUnit,
    Persist,
    PieceArrived,
    Planned,
    Released,
    RequestPiece,
    SetRate,
    StorePiece,
    Tell,
    ViewChanged,
    Want,
)
from meshmoe.custody.throttle import RATE_MAX_BYTES_PER_S
from meshmoe.engine.pool import ExpertPool
from meshmoe.membership import Received, Send, Tick
from meshmoe.node.custody_file import CustodyFile
from meshmoe.node.gossip_driver import GossipDriver
from meshmoe.node.mesh import Mesh
from meshmoe.node.messenger import Messenger
from meshmoe.node.pacing import Pacer
from meshmoe.node.unit_intake import UnitIntake
from meshmoe.node.wants import Wants
from meshmoe.placement.live import Settled
from meshmoe.transport.base import Parcel
from meshmoe.wire.codec import Decoded

logger = logging.getLogger(__name__)

INBOX_MAX = 4096
"""Messages of peers that may wait to be handled; custody repeats what matters, so more are dropped and counted."""

MIGRATIONS_KEPT = 32
"""Ended migrations that the status can show."""


def now_s() -> float:
    """Seconds that pass while the box sleeps, too: else an answer from before the sleep would look fresh."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class CustodyDriver:
    """Made when the node listens; `begin` gives it the machine when the model is known."""

    def __init__(
        self, messenger: Messenger, gossip: GossipDriver, mesh: Mesh, take_call_p99_s: Callable[[], float]
    ) -> None:
        """Make one; ``take_call_p99_s`` tells what expert calls have taken since it was asked last, 0 for too few."""
        self._messenger = messenger
        self._gossip = gossip
        self._mesh = mesh
        self._take_call_p99_s = take_call_p99_s
        self._inbox: deque[CustodyEvent] = deque()
        self._moved_bytes = 0
        self._woken = trio.Event()
        self._leave_news = trio.Event()
        self.machine: CustodyMachine | None = None
        self.lost: set[ExpertId] = set()
        self.leave_progress = LeaveProgress(0, 0)
        self.leave_finished: LeaveFinished | None = None
        self.migrations: deque[tuple[float, MigrationEnded]] = deque(maxlen=MIGRATIONS_KEPT)
        """Ended ones with the time, seconds of `now_s`, the latest last."""
        self.counts: Counter[str] = Counter()
        self.settled = 0
        """How often placement's plans have come to rest."""
        for message_type in CUSTODY_MESSAGES:
            messenger.on(message_type, self._received)

    def begin(
        self, machine: CustodyMachine, wants: Wants, intake: UnitIntake, pool: ExpertPool, file: CustodyFile
    ) -> None:
        """Hand over what a node with a model has; `run` comes next."""
        self.machine = machine
        self._wants = wants
        self._intake = intake
        self._pool = pool
        self._file = file
        self.feed(intake.on_disk())

    @property
    def wanted(self) -> tuple[ExpertId, ...]:
        """Experts that placement wants resident here, most wanted first."""
        return self._wants.experts if self.machine is not None else ()

    def feed(self, event: CustodyEvent) -> None:
        """Queue an event for the machine."""
        self._inbox.append(event)
        self._woken.set()

    def follow(self, settled: Settled) -> None:
        """Let weights follow plans that have come to rest."""
        self.settled += 1
        self._wants.settle(settled.wants, self._pool.experts())
        self.feed(Planned(settled.holders))
        self.feed(Want(self._wants.experts))

    def leave(self) -> None:
        """Start handing everything over; `leave_progress` and `leave_finished` tell how far it is."""
        self.feed(Leave())

    async def wait_leave_news(self) -> None:
        """Wait for the next step of a leave."""
        await self._leave_news.wait()

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._intake.run)
            nursery.start_soon(self._follow_view)
            nursery.start_soon(self._pace)
            await self._work()

    async def _work(self) -> None:
        assert self.machine is not None
        while True:
            if not self._inbox:
                self._woken = trio.Event()
                with trio.move_on_after(max(0.0, self.machine.next_deadline() - now_s())):
                    await self._woken.wait()
            events, self._inbox = list(self._inbox) or [Tick()], deque()
            effects: list[CustodyEffect] = []
            for event in events:
                effects += self.machine.handle(event, now_s())
            await self._persist(effects)
            for effect in effects:
                self._carry_out(effect)
            for event in events:
                if isinstance(event, PieceArrived):
                    self._moved_bytes += event.length
                    self._intake.forget_piece(event.expert, event.offset)
            await trio.lowlevel.checkpoint()

    async def _follow_view(self) -> None:
        """Tell the machine of every change in the view; what placement wants follows from it."""
        seen = -1
        while True:
            version = self._gossip.view.version
            if version != seen:
                seen = version
                self.feed(ViewChanged(dict(self._gossip.view.nodes)))
                if self._wants.update(self._mesh.serving()):
                    self.feed(Want(self._wants.experts))
            await self._mesh.wait_changed()

    async def _pace(self) -> None:
        """Once a second: let weights come in as fast as expert calls can bear."""
        assert self.machine is not None
        pacer, told = Pacer(), RATE_MAX_BYTES_PER_S
        while True:
            await trio.sleep(1.0)
            moved_bytes, self._moved_bytes = self._moved_bytes, 0
            rate = pacer.step(self._take_call_p99_s(), moving=self.machine.intakes > 0, moved_bytes=moved_bytes)
            if rate != told:
                told = rate
                self.feed(SetRate(rate))

    async def _persist(self, effects: Iterable[CustodyEffect]) -> None:
        """Write the last state of a batch; the earlier ones are contained in it."""
        states = [effect.state for effect in effects if isinstance(effect, Persist)]
        if states:
            await trio.to_thread.run_sync(self._file.write, states[-1])

    def _carry_out(self, effect: CustodyEffect) -> None:
        match effect:
            case Persist():
                pass  # done before everything else
            case Tell(claims=claims):
                self._gossip.publish(*claims)
            case Send(peer=peer, message=message):
                self._messenger.try_post(peer, Lane.CONTROL, message)
            case OpenUnit(expert=expert):
                self._intake.open(expert)
            case RequestPiece():
                self._intake.request(effect)
            case StorePiece(expert=expert, offset=offset):
                self._intake.store(expert, offset)
            case LoadUnit(expert=expert):
                self._intake.load(expert)
            case AbandonUnit(expert=expert):
                self._intake.abandon(expert)
            case Drop(expert=expert):
                self._pool.evict(expert)  # calls at work keep their own references to the weights
                self.feed(Dropped(expert))
            case LeaveProgress():
                self.leave_progress = effect
                self._tell_leave()
            case LeaveFinished():
                self.leave_finished = effect
                self._tell_leave()
            case Adopted() | Released() | Lost() | Found() | MigrationEnded():
                self._note(effect)

    def _tell_leave(self) -> None:
        news, self._leave_news = self._leave_news, trio.Event()
        news.set()

    def _note(self, effect: Adopted | Released | Lost | Found | MigrationEnded) -> None:
        match effect:
            case Adopted(expert=expert, slot=slot):
                self.counts["adopted"] += 1
                logger.debug("custodian of expert %s in slot %d", expert, slot, extra=self._bound(expert))
            case Released(expert=expert, successor=successor):
                self.counts["released"] += 1
                logger.debug("%s is custodian of expert %s now", successor, expert, extra=self._bound(expert))
            case Lost(expert=expert):
                self.lost.add(expert)
                logger.error(
                    "expert %s is lost: no node present holds or stores it; requests that need it fail", expert
                )
                self._mesh.announce_change()
            case Found(expert=expert):
                self.lost.discard(expert)
                logger.info("expert %s can be had again", expert)
            case MigrationEnded(expert=expert, peer=peer, outcome=outcome, reason=reason):
                self.counts[f"migrations_{outcome}"] += 1
                self.migrations.append((now_s(), effect))
                why = reason and f" ({reason})"
                bound = {**self._bound(expert), "peer": peer, "migration": effect.id, "outcome": outcome}
                logger.info("migration of expert %s with %s: %s%s", expert, peer, outcome, why, extra=bound)

    def _bound(self, expert: ExpertId) -> dict[str, str | int]:
        """What a log line about ``expert`` is bound to: its name, and the epoch of the claim that prevails."""
        claims = self._gossip.view.claims(expert)
        return {"expert": str(expert), **({"epoch": claims[0].epoch} if claims else {})}

    def _received(self, parcel: Parcel, decoded: Decoded) -> None:
        if self.machine is None:
            return  # nothing of ours can be meant yet
        if len(self._inbox) >= INBOX_MAX:
            self._messenger.faults["custody_inbox_full"] += 1
            return
        self.feed(Received(NodeId(parcel.sender), parcel.generation, decoded.message))
