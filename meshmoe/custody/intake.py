"""Bringing experts' weights in: from the local disk as far as they are there, then piece by piece from peers.

Each expert on its way has one intake, whoever wanted it (repair, placement, a migration). Its states:

    state     what happens             next      effects
    --------  -----------------------  --------  ----------------------------------------------
    OPENING   unit is whole on disk    LOADING   LoadUnit
    OPENING   unit is part on disk     FETCHING  RequestPiece ...
    FETCHING  the next piece arrives   FETCHING  StorePiece, RequestPiece
    FETCHING  the last piece arrives   LOADING   StorePiece, LoadUnit
    FETCHING  another piece arrives    FETCHING  -          (thrown away; it is asked for again when it is due)
    FETCHING  peer fails, or is late   FETCHING  RequestPiece ... from the next source, after a pause
    LOADING   verified and resident    (over)
    LOADING   digest wrong             OPENING   OpenUnit, the next source first
    any       too many failures        (over)    AbandonUnit

- Pieces are stored in order (go back N): what is on disk of a unit is always a prefix, so that an attempt goes on where
  the last one ended, even after a crash.
- At most ``credit`` pieces are outstanding, of all intakes together (the first ones first), and a token bucket paces
  the requests: what is asked for in advance stands before expert calls in the queues of a slow link, and has to come
  before it counts as late.
- Any peer may send any piece: weights are immutable, and the digest of the whole unit decides.
- The room is reserved before the first step and given back only when nothing of the expert can be in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.custody.desk import Desk
from meshmoe.custody.effects import AbandonUnit, LoadUnit, OpenUnit, RequestPiece, StorePiece
from meshmoe.custody.events import PieceArrived, PieceFailed, UnitFailed, UnitOpened
from meshmoe.custody.slots import succession
from meshmoe.custody.throttle import RATE_MAX_BYTES_PER_S, TokenBucket

PAUSE_S = 1.0
"""After the n-th failure in a row an intake pauses n times as long."""


NEVER_S = float("inf")


class IntakeState(Enum):
    """See the module's table."""

    OPENING = auto()
    FETCHING = auto()
    LOADING = auto()


@dataclass(slots=True)
class Intake:
    """One expert on its way in.

    Attributes:
        preferred: The peer to fetch from first: a migration's donor.
        stored_bytes: Length of the prefix that is on disk.
        requested_bytes: Pieces up to here are on disk or on their way.
        total_bytes: Of the unit on disk.
        tries: Failures since the last piece.
        turn: Failures in all; each moves on to the next source.
        ready_s: When a pause ends, or the bucket lets another request go.
        late_s: When the next piece is late.
    """

    preferred: NodeId | None
    state: IntakeState = IntakeState.OPENING
    stored_bytes: int = 0
    requested_bytes: int = 0
    total_bytes: int = 0
    tries: int = 0
    turn: int = 0
    ready_s: float = NEVER_S
    late_s: float = NEVER_S


class Intakes:
    """All intakes of one node."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        burst_bytes = desk.config.credit * desk.config.piece_bytes
        self._bucket = TokenBucket(RATE_MAX_BYTES_PER_S, burst_bytes, desk.now)
        self._intakes: dict[ExpertId, Intake] = {}
        self._resting_until_s: dict[ExpertId, float] = {}
        self._given_up: list[ExpertId] = []

    def __contains__(self, expert: ExpertId) -> bool:
        return expert in self._intakes

    def __len__(self) -> int:
        return len(self._intakes)

    def stored_bytes(self, expert: ExpertId) -> int:
        """How far an intake is."""
        return self._intakes[expert].stored_bytes if expert in self._intakes else 0

    def resting_until_s(self, expert: ExpertId) -> float:
        """An expert that could not be brought in is not tried again before this time."""
        return self._resting_until_s.get(expert, 0.0)

    def take_failed(self) -> list[ExpertId]:
        """Experts given up since this was asked last."""
        given_up, self._given_up = self._given_up, []
        return given_up

    def start(self, expert: ExpertId, preferred: NodeId | None = None) -> bool:
        """Begin to bring an expert in, if there is room; returns whether it is on its way now."""
        desk = self._desk
        if expert in self._intakes:
            return True
        if expert in desk.ledger or not desk.ledger.reserve(expert, desk.expert_bytes[expert]):
            return False  # still being dropped, or no room
        self._intakes[expert] = Intake(preferred)
        desk.out.append(OpenUnit(expert))
        return True

    def cancel(self, expert: ExpertId) -> bool:
        """Stop bringing an expert in; returns whether that was possible (it is not once it is being loaded)."""
        intake = self._intakes.get(expert)
        if intake is None or intake.state is IntakeState.LOADING:
            return False
        self._end(expert)
        return True

    # -- events ------------------------------------------------------------

    def opened(self, event: UnitOpened) -> None:
        """How much there is on disk."""
        intake = self._intakes.get(event.expert)
        if intake is None or intake.state is not IntakeState.OPENING:
            return
        intake.total_bytes = event.total_bytes
        intake.stored_bytes = intake.requested_bytes = event.offset_bytes
        if event.offset_bytes >= event.total_bytes:
            self._load(event.expert, intake)
        else:
            intake.state = IntakeState.FETCHING
            self._request(event.expert, intake)

    def arrived(self, event: PieceArrived) -> None:
        """A piece: keep it if it is the next one and whole."""
        intake = self._intakes.get(event.expert)
        if intake is None or intake.state is not IntakeState.FETCHING or event.offset != intake.stored_bytes:
            return
        if event.length != min(self._desk.config.piece_bytes, intake.total_bytes - event.offset):
            self._failed(event.expert, intake)
            return
        self._desk.out.append(StorePiece(event.expert, event.offset))
        intake.stored_bytes += event.length
        intake.requested_bytes = max(intake.requested_bytes, intake.stored_bytes)
        intake.tries = 0
        outstanding = intake.requested_bytes > intake.stored_bytes
        intake.late_s = self._desk.now + self._desk.config.piece_timeout_s if outstanding else NEVER_S
        if intake.stored_bytes == intake.total_bytes:
            self._load(event.expert, intake)
        self._request_more()

    def peer_failed(self, event: PieceFailed) -> None:
        """A source is none."""
        intake = self._intakes.get(event.expert)
        if (
            intake is not None
            and intake.state is IntakeState.FETCHING
            and event.peer == self._source(event.expert, intake)
        ):
            self._failed(event.expert, intake)

    def loaded(self, expert: ExpertId) -> None:
        """The end of it: the room is the resident's from now on."""
        self._intakes.pop(expert, None)
        self._resting_until_s.pop(expert, None)

    def unit_failed(self, event: UnitFailed) -> None:
        """The disk's fault, or wrong bytes: begin again, from another source."""
        intake = self._intakes.get(event.expert)
        if intake is None or intake.state is IntakeState.FETCHING:
            return
        intake.state = IntakeState.OPENING
        self._failed(event.expert, intake)

    def set_rate(self, bytes_per_s: float) -> None:
        """How fast requests may go out."""
        self._bucket.set_rate(bytes_per_s, self._desk.now)

    def tick(self) -> None:
        """Do what is due."""
        now = self._desk.now
        for expert, intake in list(self._intakes.items()):
            if intake.late_s <= now:
                self._failed(expert, intake)
            elif intake.ready_s <= now and intake.state is IntakeState.OPENING:
                intake.ready_s = NEVER_S
                self._desk.out.append(OpenUnit(expert))
            elif intake.ready_s <= now:
                self._request(expert, intake)
        self._request_more()

    def next_s(self) -> float:
        """When `tick` has something to do."""
        return min((min(intake.ready_s, intake.late_s) for intake in self._intakes.values()), default=NEVER_S)

    # -- parts ------------------------------------------------------------

    def _source(self, expert: ExpertId, intake: Intake) -> NodeId | None:
        """Whom to ask for pieces: after each failure the next of those who have it."""
        survey = self._desk.survey
        holders = survey.holders(expert)
        sources = list(succession(expert, holders)) + list(succession(expert, survey.storers() - holders))
        if intake.preferred is not None:
            sources = [intake.preferred, *(node for node in sources if node != intake.preferred)]
        return sources[intake.turn % len(sources)] if sources else None

    def _has_credit(self) -> bool:
        config = self._desk.config
        outstanding_bytes = sum(intake.requested_bytes - intake.stored_bytes for intake in self._intakes.values())
        return outstanding_bytes < config.credit * config.piece_bytes

    def _request_more(self) -> None:
        """Go on with those that wait for nothing but credit."""
        for expert, intake in list(self._intakes.items()):
            if intake.state is IntakeState.FETCHING and intake.ready_s == NEVER_S:
                self._request(expert, intake)

    def _request(self, expert: ExpertId, intake: Intake) -> None:
        """Ask for pieces as far as credit and pace allow."""
        desk = self._desk
        source = self._source(expert, intake)
        if source is None:
            self._failed(expert, intake)
            return
        intake.ready_s = NEVER_S
        while intake.requested_bytes < intake.total_bytes and self._has_credit():
            length = min(desk.config.piece_bytes, intake.total_bytes - intake.requested_bytes)
            if not self._bucket.take(length, desk.now):
                intake.ready_s = self._bucket.ready_at_s(desk.now)
                break
            if intake.late_s == NEVER_S:
                intake.late_s = desk.now + desk.config.piece_timeout_s
            desk.out.append(RequestPiece(expert, source, intake.requested_bytes, length))
            intake.requested_bytes += length

    def _load(self, expert: ExpertId, intake: Intake) -> None:
        intake.state = IntakeState.LOADING
        intake.ready_s = intake.late_s = NEVER_S
        self._desk.out.append(LoadUnit(expert))

    def _failed(self, expert: ExpertId, intake: Intake) -> None:
        """Count a failure: pause, or give up."""
        intake.tries += 1
        intake.turn += 1
        if intake.tries > self._desk.config.intake_tries:
            self._resting_until_s[expert] = self._desk.now + self._desk.config.intake_retry_s
            self._given_up.append(expert)
            self._end(expert)
            return
        intake.requested_bytes = intake.stored_bytes
        intake.late_s = NEVER_S
        intake.ready_s = self._desk.now + PAUSE_S * intake.tries

    def _end(self, expert: ExpertId) -> None:
        del self._intakes[expert]
        self._desk.ledger.free(expert)
        self._desk.agenda.add([expert])
        self._desk.out.append(AbandonUnit(expert))
        self._request_more()
