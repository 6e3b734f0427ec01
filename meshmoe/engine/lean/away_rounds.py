"""A batch's compiled rounds, as far as the interpreter has to do with them.

The compiled step asks and waits by itself (`meshmoe.engine.rounds`). It comes back with a round under way when somebody
else wants the thread, when something has come that is not for compiled code, or when an answer is late. Then it is gone
on from here: waited for again, or *adopted*, which makes a `Call` of it like any other, for which the job can park and
which knows what to do where a peer does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from meshmoe.engine.job import Job
from meshmoe.engine.later import Later
from meshmoe.engine.lean.attention import Ints
from meshmoe.engine.lean.away import Asked, AwayExperts, Pair
from meshmoe.engine.lean.row import Row
from meshmoe.engine.request import GenerationStats
from meshmoe.engine.rounds.answers import end
from meshmoe.engine.rounds.attending import DONE, LATE
from meshmoe.engine.rounds.post import PostOffice
from meshmoe.engine.rounds.tables import Group, Office, Round, Tally
from meshmoe.engine.rounds.tables import Pair as PairColumn

_PATIENCE_NS = 1_000_000_000
_ROWS_MAX = 256

_LATER_S = 0.0005
"""For how long what was put off is done before anybody looks at the lane again."""


class AwayRounds:
    """See the module.

    Attributes:
        own: The batch's row of the office's rounds, -1 if it has none.
        requests: For each row of the batch, whose it is: a row of ``tally``.
        tally: See `Tally`.
        goes_on: Whether `go_on` may be called again; else the round is to be adopted.
    """

    def __init__(self, office: PostOffice, away: AwayExperts, job: Job, later: Later) -> None:
        """Of a batch.

        Args:
            office: Of the thread.
            away: The batch's other way of asking.
            job: That computes it.
            later: What is done while it waits.
        """
        self.own = office.take_round()
        self.requests = np.zeros(_ROWS_MAX, np.int64)
        self.tally = np.zeros((1, len(Tally)), np.int64)
        self.goes_on = True
        self._office = office
        self._away = away
        self._job = job
        self._later = later
        self._stats: list[GenerationStats] = []
        self._decode: list[bool] = []
        self._entered = False
        self._waited_ns = 0

    @property
    def under_way(self) -> bool:
        """Whether a round has been begun that is not over."""
        return self.own >= 0 and bool(self._office.post.rounds[self.own, Round.STATE])

    @property
    def attended(self) -> bool:
        """Whether the compiled step attends to the lane, and nothing is left there that it cannot deal with."""
        return self._office.open and not self._office.post.numbers[Office.LEFT]

    def begin(self, rows: Rows[Row]) -> None:
        """A forward of these rows begins."""
        self._stats, self._decode, self.goes_on = [], [], True
        if not self._office.open or self.own < 0:
            return
        inlet = self._job.inlet
        if inlet is not None:
            inlet.fresh()
        numbers: dict[int, int] = {}
        requests: list[int] = []
        for row in rows:
            key = id(row.stats)
            if key not in numbers:
                numbers[key] = len(self._stats)
                self._stats.append(row.stats)
                self._decode.append(False)
            of = numbers[key]
            self._decode[of] = self._decode[of] or row.decode
            requests.append(of)
        self.requests[: len(requests)] = requests
        if len(self.tally) < len(self._stats):
            self.tally = np.zeros((2 * len(self._stats), len(Tally)), np.int64)
        else:
            self.tally[:] = 0

    def enter(self) -> None:
        """The compiled step is about to be called."""
        office = self._office
        if not office.open:
            return
        self._entered = self._job.enter_lane()
        numbers = office.post.numbers
        if not self._entered:
            numbers[Office.OPEN] = 0  # the lane is closed
            return
        numbers[Office.MAY_WAIT] = self._job.alone and not self._later
        self._waited_ns = self._waited()

    def leave(self) -> float:
        """It has come back; returns seconds for which it has had nothing to do but wait for peers."""
        if not self._entered:
            return 0.0
        self._entered = False
        waited_s = (self._waited() - self._waited_ns) / 1e9
        self._job.leave_lane(waited_s)
        return waited_s

    def _waited(self) -> int:
        return int(self._office.post.numbers[Office.WAITED_NS])

    def go_on(self, experts: Ints) -> tuple[float, bool]:
        """Wait for the round a bit more.

        Args:
            experts: ``[MoE layers, experts, 2]``: addresses of what is resident.

        Returns:
            For how many seconds there was nothing to do, and whether the round is over, all answered.
        """
        alone = self._job.alone
        if self._later and alone:
            self._later.do_for(_LATER_S)
        patience_ns = _PATIENCE_NS if alone and not self._later else 0
        if not self._job.enter_lane():
            self.goes_on = False
            return 0.0, False
        waited_ns = self._waited()
        found = self._office.wait(experts, self._job.limit.address, self.own, patience_ns)
        waited_s = (self._waited() - waited_ns) / 1e9
        self._job.leave_lane(waited_s)
        self.goes_on = True
        if found == DONE:
            end(self._office.post.whole, self.own, self.requests, self.tally)
            return waited_s, True
        self.goes_on = found != LATE and alone
        return waited_s, False

    def adopt(self, batch: Rows[Row], moe: int, missing: list[Pair]) -> Asked:
        """Make a call like any other of the round."""
        inlet, post = self._job.inlet, self._office.post
        assert inlet is not None
        call, taken = self._away.wanted(batch, moe, missing)
        pairs = post.pairs[self.own, : post.rounds[self.own, Round.PAIRS]]
        states = post.groups[self.own, :, Group.STATE]
        taken.update(int(pair[PairColumn.EXPERT]) for pair in pairs if states[pair[PairColumn.GROUP]] == 2)
        under_way = inlet.adopt(self._job, call, self.own, set(taken))
        self.goes_on = True
        return self._away.asked(under_way, batch, missing, call, taken)

    def give_up(self) -> None:
        """Nobody wants the answers any more."""
        if self.under_way:
            inlet = self._job.inlet
            assert inlet is not None
            inlet.give_up(self.own)

    def account(self) -> list[tuple[GenerationStats, int]]:
        """Tell requests what the last forward's rounds took; returns how many expert calls the mesh made for each."""
        found = []
        for stats, decode, numbers in zip(self._stats, self._decode, self.tally.tolist(), strict=False):
            calls = numbers[Tally.CALLS]
            if calls:
                found.append((stats, calls))
                stats.remote_wait_s += numbers[Tally.WAITED_NS] / 1e9
                stats.sent_bytes += numbers[Tally.SENT_BYTES]
                stats.received_bytes += numbers[Tally.RECEIVED_BYTES]
                if decode:
                    stats.decode_rounds += numbers[Tally.ROUNDS]
                else:
                    stats.prefill_rounds += numbers[Tally.ROUNDS]
        self._stats = []
        return found

    def close(self) -> None:
        """The batch is done with."""
        self.give_up()
        self._office.give_back(self.own)
        self.own = -1
