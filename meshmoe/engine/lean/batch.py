"""One forward pass over rows of any sequences: the ragged step that decoding, prompts and drafts all go through.

A *row* is one token of one sequence, at the position behind what the sequence has read. A batch takes any mixture: one
row of each of sixteen requests (decode), sixty-four of one (a chunk of a prompt), four of one and one of another (a
draft to verify beside a decode step). The rows of one sequence stand in order; each attends to those before it. A row's
bits are those that it has alone, whatever else is in the batch, so batches may be put together as it suits the moment.

Texts that begin alike are a *tree*: where they part, the sequence is forked, and a row before that is read into the
forks as well (``also``). Then each row attends to what its own sequence has, in order, and knows of no tree.

    batch = lean.batch(job)                                   # one forward at a time each
    row = Row(sequence, token, stats)
    logits = batch.forward([row, ...])                        # [rows whose logits are wanted, V]
    sequence.truncate(n)                                      # forget positions from n on: rollback of a draft

`forward` reserves room for the rows (`NoBlocksError`, before anything is computed) and counts them as read only when
it succeeds: after any error the sequences are as they were. A row with ``local`` set chooses only among the experts
that are resident, so it never waits for the mesh; what it computes is a draft, not the model's, and has to be truncated
before the sequence is read on in earnest.

The compiled step goes on through all layers until somebody wants the compute thread for more urgent work, and then
comes back between two layers or two experts (`kernels.limit`). Where it is cut does not change a bit. At a layer that
lacks experts, one call goes out for the whole batch; where the data lane is open to compiled code, that is a *round* of
`meshmoe.engine.rounds`, for which the step does not even come back (`meshmoe.engine.lean.away_rounds` has what is
left to do here).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from functools import partial
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.job import Call, CallAbandonedError, Job, JobCancelled
from meshmoe.engine.kernels.crew import crew_here, linear
from meshmoe.engine.later import Later
from meshmoe.engine.lean.attention import BLOCK_TOKENS
from meshmoe.engine.lean.away import Asked, AwayExperts
from meshmoe.engine.lean.away_rounds import AwayRounds
from meshmoe.engine.lean.blocks import BlockPool, Sequence
from meshmoe.engine.lean.little import LittleCalls
from meshmoe.engine.lean.model import ROWS_MAX, LeanModel, Workspace
from meshmoe.engine.lean.resident import ResidentSnapshot, ResidentTable
from meshmoe.engine.lean.row import Row
from meshmoe.engine.lean.step import compute_resident, finish, run
from meshmoe.engine.lean.tables import End, Layer, Number, Place, Token
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import RemoteExperts
from meshmoe.engine.request import GenerationStats
from meshmoe.engine.rounds.post import PostOffice

_HEAD_BLOCK_BYTES = 8 << 20
"""Of the logits' weights, computed between two looks. What is no larger is computed by the step itself."""


class LeanEngine:
    """The lean path of one engine: a model, the engine's resident experts, and room for keys and values.

    Attributes:
        model: The model.
        blocks: The room.
        little: Serves peers' little calls.
        office: Makes compiled rounds, once it is open.
        clock: Seconds that passes are timed by.
        later: What is done while passes wait for peers.
    """

    def __init__(
        self,
        model: LeanModel,
        pool: ExpertPool,
        experts_per_layer: Rows[int],
        remote: RemoteExperts | None,
        counts: ActivationCounts,
        kv_bytes: int,
    ) -> None:
        self.clock: Callable[[], float] = perf_counter
        self.later = Later()
        self.model = model
        self.blocks: BlockPool = model.new_blocks(kv_bytes)
        self.remote = remote
        self.counts = counts
        self.resident = ResidentTable(pool, experts_per_layer, model.plan.embedding.dtype)
        self.little = LittleCalls(model.plan, self.resident)
        self.office = PostOffice(model.plan, max(experts_per_layer, default=1), self.little)

    @property
    def tokens_max(self) -> int:
        """Tokens of one text that there is room for when it is alone."""
        # One block is for a copy, where a text goes on in the middle of a shared one.
        return (self.blocks.capacity - 1) * BLOCK_TOKENS

    def sequence(self, long: bool = False) -> Sequence:
        """A text of which nothing has been read; ``long`` if it exceeds the model's switch (see `LeanPlan`)."""
        return Sequence(self.blocks, long)

    def batch(self, job: Job) -> LeanBatch:
        """Make what computes batches, one after the other, within a job."""
        return LeanBatch(self, job)


class BatchAbandonedError(Exception):
    """`LeanBatch.abandon` was called."""


class LeanBatch:
    """See the module. Owns the working memory of one forward.

    Attributes:
        clock: Seconds that passes are timed by.
        later: What is done while forwards wait for peers.
        waited_s: Seconds for which the last forward had nothing to do but wait for peers.
        computed_s: Seconds for which it computed layers itself.
        best: Of the rows whose logits the last forward returned, the places of the highest ones; -1 where they are not
            known. Looking for them afterwards takes as long as ten layers of a small model.
        abandoned: Whether `forward` should give up; whoever calls it takes this back first.
    """

    def __init__(self, engine: LeanEngine, job: Job) -> None:
        self._engine = engine
        self._model = engine.model
        self._job = job
        self._work = Workspace(engine.model.plan)
        head = engine.model.plan.head
        self._small_head = head.numel() * head.element_size() <= _HEAD_BLOCK_BYTES
        counts = engine.counts
        self._counters = np.array(
            [[layer.ctypes.data for layer in kind] for kind in (counts.decode, counts.prefill)], np.int64
        )
        self.clock, self.later = engine.clock, engine.later
        self.waited_s = self.computed_s = 0.0
        self.abandoned = False
        self.best: Rows[int] = ()
        self._away = AwayExperts(engine.model.plan, self._work, engine.remote, engine.little, job)
        self._rounds = AwayRounds(engine.office, self._away, job, engine.later)
        self._awaited: Call[dict[int, Tensor]] | None = None
        self._rows: Rows[Row] = ()
        self._calls_away: list[tuple[GenerationStats, int]] = []
        """Of the last forward: requests, and how many expert calls the mesh made for them."""
        self._looked = False
        """Whether the thread has just looked after everybody else: the job was parked."""
        self._also: list[NDArray[np.int64]] = []
        """Tables that the rows of the last forward name by address."""

    @property
    def forks(self) -> bool:
        """Whether rows may be read into several sequences at once."""
        return True

    @property
    def waiting(self) -> bool:
        """Whether a forward is under way that can only wait for peers right now."""
        return self._awaited is not None

    def forward(self, rows: Rows[Row]) -> Tensor:
        """Read tokens.

        Args:
            rows: 1 to `ROWS_MAX`.

        Returns:
            ``[n, V]`` float32, rounded to the model's dtype: the logits of the rows that want them.

        Raises:
            NoBlocksError: There is no room for the keys and values.
            ExpertUnavailableError: An expert cannot be had.
            PeerError: The mesh answered something else than what was asked.
            BatchAbandonedError: See `abandon`.
            JobCancelled: The job was cancelled.
        """
        assert 0 < len(rows) <= ROWS_MAX
        local = all(row.local for row in rows)  # then there is nothing to ask, and nothing that counts
        if not local:
            self._rounds.begin(rows)
        self._rows, self._calls_away, self.waited_s, self.computed_s = rows, [], 0.0, 0.0
        layers, vocabulary = len(self._model.plan.layers), len(self._model.plan.head)
        lengths = self._enter(rows)
        # Torch would give the interpreter away here, to a thread that can work while layers are computed as well.
        logits = np.empty((sum([row.logits for row in rows]), vocabulary), np.float32)
        logits_at = logits.ctypes.data if self._small_head else 0
        at, joining, crew = 0, False, crew_here()
        self._looked = False
        while at < layers:
            self._look()
            snapshot = self._engine.resident.snapshot()
            if crew is not None:
                crew.rouse()
            began = perf_counter()
            self._rounds.enter()
            try:
                at = self._run(snapshot, at, joining, logits_at)
            finally:
                waited_s = self._rounds.leave()
            self.waited_s += waited_s
            self.computed_s += perf_counter() - began - waited_s
            joining = at < 0
            if joining:
                first, at = divmod(-1 - at, layers)
                self._experts(snapshot, at, first)
            del snapshot  # it would keep what is evicted
        for sequence, length in lengths.items():
            sequence.length = length
        if not local:
            self._count(rows)
        if not self._small_head:
            self._fill_logits(logits)
        found = self._work.rows[: len(rows), Token.BEST].tolist()
        self.best = [best for best, row in zip(found, rows, strict=True) if row.logits]
        return torch.from_numpy(logits)

    def close(self) -> None:
        """Nothing more will be computed."""
        self._rounds.close()

    def abandon(self) -> None:
        """Make a forward under way raise soon, wherever it is; on any thread. Nobody wants its rows any more."""
        self.abandoned = True
        self._job.interrupt()
        awaited = self._awaited
        if awaited is not None:
            awaited.abandon()

    def _look(self) -> None:
        # Compiled code attends to an open lane itself, and comes back when somebody wants the thread.
        if not self._looked and not (self._rounds.attended and not self._job.limit.wanted):
            self._job.checkpoint()
        self._looked = False
        if self.abandoned:
            raise BatchAbandonedError
        # Helpers that are parked have to be roused now and then.
        self._job.limit.begin(bounded=crew_here() is not None)

    def _enter(self, rows: Rows[Row]) -> dict[Sequence, int]:
        """Have room for the rows, and describe them to the compiled step; returns the lengths to come."""
        lengths: dict[Sequence, int] = {}
        positions: list[int] = []
        for row in rows:
            at = lengths.get(row.sequence, row.sequence.length)
            positions.append(at)
            lengths[row.sequence] = at + 1
            for sequence in row.also:
                assert lengths.get(sequence, sequence.length) == at
                lengths[sequence] = at + 1
        for sequence, length in lengths.items():
            sequence.reserve(length - sequence.length)
        self._also = []
        described: list[tuple[int, ...]] = []
        for row, at in zip(rows, positions, strict=True):
            cos, sin = self._model.rotation(at, row.sequence.long)
            kind = -1 if row.local else 0 if row.decode else 1
            others = self._others(row) if row.also else 0
            described.append((row.sequence.table_at, at, cos, sin, kind, row.local, others, row.token, row.logits, -1))
        self._work.rows[: len(rows)] = described
        self._work.fit(len(rows), max(lengths.values()))
        return lengths

    def _others(self, row: Row) -> int:
        """Address of the table of a row's further sequences."""
        self._also.append(np.array([len(row.also), *(s.table_at for s in row.also)], np.int64))
        return int(self._also[-1].ctypes.data)

    def _run(self, snapshot: ResidentSnapshot, begin: int, joining: bool, logits_at: int) -> int:
        plan, work = self._model.plan, self._work
        return run(
            plan.tag,
            plan.shape,
            plan.numbers,
            plan.layers,
            work.places,
            snapshot.addresses,
            work.rows[: work.count],
            self._counters,
            work.chosen,
            work.sorting,
            begin,
            len(plan.layers),
            joining,
            self._job.limit.address,
            self._engine.office.post.whole,
            self._rounds.own,
            self._rounds.requests,
            self._rounds.tally,
            plan.ends,
            logits_at,
        )

    def _experts(self, snapshot: ResidentSnapshot, at: int, first: int) -> None:
        """Have a routed layer's experts computed from ``first`` on, the mesh's meanwhile."""
        moe = int(self._model.plan.layers[at, Layer.MOE])
        if self._rounds.under_way:
            self._finish(snapshot, at, first)
            return
        missing = self._away.missing(snapshot, at)
        asked = self._away.ask(self._rows, moe, missing) if len(missing) else None
        try:
            self._compute(snapshot, at, first)
        except BaseException:
            if asked is not None:
                asked.call.abandon()
            raise
        if asked is not None:
            self._receive(asked)

    def _finish(self, snapshot: ResidentSnapshot, at: int, first: int) -> None:
        """Go on with a compiled round for which the step could not wait."""
        try:
            self._compute(snapshot, at, first)
            while not self.abandoned:
                waited_s, over = self._rounds.go_on(snapshot.addresses)
                self.waited_s += waited_s
                if over:
                    self._looked = True
                    return None
                if not self._rounds.goes_on:  # somebody else wants the thread, or some of it will never be answered
                    self._looked = False
                    moe, missing = int(self._model.plan.layers[at, Layer.MOE]), self._away.missing(snapshot, at)
                    return self._receive(self._rounds.adopt(self._rows, moe, missing))
                self._job.checkpoint()
        except BaseException:
            self._rounds.give_up()
            raise
        self._rounds.give_up()
        raise BatchAbandonedError

    def _compute(self, snapshot: ResidentSnapshot, at: int, first: int) -> None:
        """Compute a layer's resident experts from ``first`` on."""
        plan, work = self._model.plan, self._work
        layer = plan.layers[at]
        moe, experts = int(layer[Layer.MOE]), int(layer[Layer.EXPERTS])
        while first < experts:
            if first:
                self._look()
            began = perf_counter()
            first = compute_resident(
                plan.tag,
                plan.shape,
                layer,
                work.places,
                snapshot.addresses[moe],
                work.chosen[moe],
                work.sorting,
                work.count,
                first,
                self._job.limit.address,
            )
            self.computed_s += perf_counter() - began

    def _receive(self, asked: Asked) -> None:
        """Wait for the missing experts' outputs and have them put where the others' are."""
        began, stalled_s = self.clock(), asked.stats.stalled_s
        self._awaited = asked.call
        try:
            if self.abandoned:
                asked.call.abandon()
            while self.later and not asked.call.ended:
                self.later.do_one()
                self._job.checkpoint()  # what has come, or is due to go, is looked at in between
            replies = asked.call.wait()
            self._looked = True
        except JobCancelled:
            asked.call.abandon()
            raise
        except CallAbandonedError:
            raise BatchAbandonedError from None
        finally:
            self._awaited = None
            waited_s = self.clock() - began
            self.waited_s += waited_s
            self._calls_away += asked.account(waited_s, asked.stats.stalled_s - stalled_s)
        if len(asked.taken) < len(asked.rows):
            self._away.put(asked, replies)

    def _count(self, rows: Rows[Row]) -> None:
        """Tell requests and node what has been computed; drafts do not count."""
        for row in rows:
            if not row.local:
                row.stats.expert_calls_local += self._model.expert_calls
        for stats, calls in [*self._calls_away, *self._rounds.account()]:
            stats.expert_calls_local -= calls
            stats.expert_calls_remote += calls
        chunks: dict[Sequence, list[int]] = {}
        for at, row in enumerate(rows):
            if not row.decode and not row.local:
                chunks.setdefault(row.sequence, []).append(at)
        for chunk in chunks.values():
            self.note_demand(chunk, decode=False)

    def note_demand(self, rows: list[int], *, decode: bool) -> None:
        """Log where rows of the last forward were routed: this node's demand, if somebody had a use for them."""
        sets = self._work.chosen[:, rows].transpose(1, 0, 2)
        if decode:
            self.later.postpone(partial(self._engine.counts.log.add, sets, decode=True))
        else:
            self._engine.counts.log.add(sets, decode=False)

    def _fill_logits(self, logits: NDArray[np.float32]) -> None:
        """Compute logits ``[n, V]`` part by part, with looks in between."""
        if not len(logits):
            return
        plan, work = self._model.plan, self._work
        vocabulary, hidden = plan.head.shape
        finish(plan.tag, plan.shape, plan.ends, plan.numbers[Number.NORM_EPS], work.places, work.rows[: work.count])
        x, desk, size = int(work.places[Place.GATHERED]), int(work.places[Place.DESK]), plan.head.element_size()
        block = max(1, _HEAD_BLOCK_BYTES // (hidden * size))
        for begin in range(0, vocabulary, block):
            part = np.empty((len(logits), min(block, vocabulary - begin)), np.float32)
            if begin:
                self._look()
            at, bias_at = int(plan.ends[End.HEAD]) + begin * hidden * size, int(plan.ends[End.HEAD_BIAS])
            bias_at += begin * size if bias_at else 0
            linear(plan.tag, desk, at, bias_at, x, part.ctypes.data, len(logits), part.shape[1], hidden)
            logits[:, begin : begin + part.shape[1]] = part
