"""Custody of one simulated node, driven as `meshmoe.node.custody_driver` does; weights are sizes.

Events wait in an inbox and are handled in batches. If a batch changes the state file, its effects wait until the file
is written, and so do all later events: a crash in between loses both, or only the effects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.custody import (
    DEFAULT,
    Adopted,
    CustodyEffect,
    CustodyEvent,
    CustodyMachine,
    Drop,
    Dropped,
    Found,
    LeaveFinished,
    LoadUnit,
    Lost,
    OnDisk,
    OpenUnit,
    Persist,
    PieceArrived,
    PieceFailed,
    Released,
    RequestPiece,
    StorePiece,
    Tell,
    UnitFailed,
    UnitLoaded,
    UnitOpened,
)
from meshmoe.gossip import Claims
from meshmoe.membership import Send, Tick
from meshmoe.sim.disk import Disk
from meshmoe.sim.pieces import PiecesInOrder
from meshmoe.sim.process import Alarm, Process

WRITE_S = 0.02
"""Longest that writing the state file takes."""

LOAD_S = 0.2
"""Longest that verifying and loading a unit takes."""

DROP_S = 0.3
"""Longest that calls at work hold on to a dropped expert."""


class Surroundings(Protocol):
    """What the part needs of its node."""

    def send(self, peer: NodeId, message: Message, *, must_be_connected: bool) -> None:
        """Post on the control lane."""

    def publish_claims(self, claims: tuple[Claims, ...]) -> None:
        """Tell the mesh."""

    def publish_memory(self) -> None:
        """Tell the mesh what is resident now."""

    def request(self, request: RequestPiece) -> None:
        """Ask a peer for a piece."""

    def doing(self, effect: CustodyEffect) -> None:
        """For the checker: this is about to be done."""

    def custody_changed(self) -> None:
        """For the checker: claims were made or released."""

    def handed_over(self, finished: LeaveFinished) -> None:
        """A leave has come to its end."""

    def is_damaged(self) -> bool:
        """Whether the unit that is now verified has a wrong digest."""


class CustodyPart:
    """The machine, the memory, and the disk."""

    def __init__(
        self,
        process: Process,
        node: Surroundings,
        machine: CustodyMachine,
        disk: Disk,
        unit_bytes: Mapping[ExpertId, int],
        rng: Random,
    ) -> None:
        self.machine = machine
        self.disk = disk
        self.memory: set[ExpertId] = set()
        """Experts that take room: resident, loading, or being dropped."""
        self.resident: set[ExpertId] = set()
        self.lost: set[ExpertId] = set()
        """Experts reported as lost."""
        self._process = process
        self._node = node
        self._unit_bytes = unit_bytes
        self._rng = rng
        self._inbox: deque[CustodyEvent] = deque()
        self._pieces = PiecesInOrder()
        self._writing = False
        self._alarm = Alarm(process, machine.next_deadline, lambda: self.feed(Tick()))
        self.feed(OnDisk(disk.whole_units()))

    def feed(self, event: CustodyEvent) -> None:
        """Queue an event for the machine."""
        self._inbox.append(event)
        if len(self._inbox) == 1 and not self._writing:
            self._process.after(0.0, self._work)

    def answered(self, answer: PieceArrived | PieceFailed) -> None:
        """A piece that was asked for has come, or will not."""
        for event in [answer] if isinstance(answer, PieceFailed) else self._pieces.arrived(answer):
            self.feed(event)

    def custody(self) -> dict[ExpertId, int]:
        """Experts that this node has promised and really has, with their slots."""
        return {expert: slot for expert, slot in self.machine.custody.items() if expert in self.resident}

    def _work(self) -> None:
        if self._writing or not self._inbox:
            return
        effects: list[CustodyEffect] = []
        while self._inbox:
            effects += self.machine.handle(self._inbox.popleft(), self._process.now_s)
        self._alarm.set()
        if any(isinstance(effect, Adopted | Released) for effect in effects):
            self._node.custody_changed()
        states = [effect.state for effect in effects if isinstance(effect, Persist)]
        if not states:
            self._carry_out_all(effects)
            return
        self._writing = True
        data = states[-1].encode()
        self._process.after(self._rng.uniform(0.0, WRITE_S), lambda: self._written(data, effects))

    def _written(self, data: bytes, effects: list[CustodyEffect]) -> None:
        self.disk.state = data
        self._writing = False
        self._carry_out_all(effects)
        if self._inbox:
            self._work()

    def _carry_out_all(self, effects: list[CustodyEffect]) -> None:
        for effect in effects:
            self._node.doing(effect)
            self._carry_out(effect)

    def _carry_out(self, effect: CustodyEffect) -> None:
        node = self._node
        match effect:
            case Tell(claims=claims):
                node.publish_claims(claims)
            case Send(peer=peer, message=message):
                node.send(peer, message, must_be_connected=False)
            case OpenUnit(expert=expert):
                self._later(0.01, lambda: self._opened(expert))
            case RequestPiece():
                self._pieces.asked(effect)
                node.request(effect)
            case StorePiece():
                self._store(effect)
            case LoadUnit(expert=expert):
                assert self.disk.has(expert), f"{expert} is loaded before its unit is whole"
                self.memory.add(expert)
                self._later(LOAD_S, lambda: self._load(expert))
            case Drop(expert=expert):
                self.resident.discard(expert)
                node.publish_memory()
                self._later(DROP_S, lambda: self._dropped(expert))
            case Lost(expert=expert):
                self.lost.add(expert)
            case Found(expert=expert):
                self.lost.discard(expert)
            case LeaveFinished():
                node.handed_over(effect)
            case _:
                pass

    def _later(self, longest_s: float, call: Callable[[], None]) -> None:
        self._process.after(self._rng.uniform(0.0, longest_s), call)

    def _opened(self, expert: ExpertId) -> None:
        self.feed(UnitOpened(expert, self.disk.stored_bytes.get(expert, 0), self._unit_bytes[expert]))

    def _store(self, piece: StorePiece) -> None:
        stored = self.disk.stored_bytes.get(piece.expert, 0)
        length = min(DEFAULT.piece_bytes, self._unit_bytes[piece.expert] - stored)
        self.disk.append(piece.expert, piece.offset, length)
        if self.disk.has(piece.expert):
            self.feed(OnDisk(self.disk.whole_units()))

    def _load(self, expert: ExpertId) -> None:
        if self._node.is_damaged():
            self.memory.discard(expert)
            self.disk.delete(expert)
            self.feed(OnDisk(self.disk.whole_units()))
            self.feed(UnitFailed(expert, "digest"))
            return
        self.resident.add(expert)
        self.feed(UnitLoaded(expert))
        self._node.publish_memory()

    def _dropped(self, expert: ExpertId) -> None:
        self.memory.discard(expert)
        self.feed(Dropped(expert))
