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

The compiled step is entered for several layers at once, as many as take about a millisecond together, because between
two entries the compute thread looks after more urgent work. A layer that takes longer than that is divided between its
experts. Where it is cut does not change a bit. At a layer that lacks experts, one call goes out for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from time import perf_counter
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meshmoe.core.errors import ExpertUnavailableError, PeerError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.compute import Call, CallAbandonedError, Job
from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.kernels.crew import crew_here, linear
from meshmoe.engine.lean.attention import BLOCK_TOKENS
from meshmoe.engine.lean.blocks import BlockPool, Sequence
from meshmoe.engine.lean.little import LittleCalls, spread
from meshmoe.engine.lean.model import ROWS_MAX, SLICE_S, LeanModel, Workspace
from meshmoe.engine.lean.resident import ResidentSnapshot, ResidentTable
from meshmoe.engine.lean.step import compute_resident, embed, finish, run
from meshmoe.engine.lean.tables import Layer, Number, Place, Shape
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import LayerCall, RemoteExperts
from meshmoe.engine.request import GenerationStats
from meshmoe.wire.frames import Frame

Pair: TypeAlias = tuple[int, int, int]
"""One row's use of one expert: the expert, the row of the batch, the expert's place among those that the row chose."""

_FEW_ROWS = 16
"""For which a loop in plain Python takes less than numpy's calls."""

_HEAD_BLOCK_BYTES = 8 << 20
"""Of the logits' weights, computed between two looks."""


class Row(NamedTuple):
    """One token to read.

    Attributes:
        sequence: Of which text; the token comes behind what it has read and behind the rows of it before this one.
        token: Its id.
        stats: Counters of the request.
        decode: Whether someone waits for this very token; otherwise it is part of a prompt.
        logits: Whether its logits are wanted.
        local: Whether it must make do with resident experts: a draft.
        also: Other sequences that have read the same up to here, and read this token, too: forks further on.
    """

    sequence: Sequence
    token: int
    stats: GenerationStats
    decode: bool = True
    logits: bool = True
    local: bool = False
    also: tuple[Sequence, ...] = ()


class LeanEngine:
    """The lean path of one engine: a model, the engine's resident experts, and room for keys and values.

    Attributes:
        model: The model.
        blocks: The room.
        little: Serves peers' little calls.
        clock: Seconds that passes are timed by.
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
        self.model = model
        self.blocks: BlockPool = model.new_blocks(kv_bytes)
        self.remote = remote
        self.counts = counts
        self.resident = ResidentTable(pool, experts_per_layer, model.plan.embedding.dtype)
        self.little = LittleCalls(model.plan, self.resident)

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
        waited_s: Seconds for which the last forward had nothing to do but wait for peers.
        abandoned: Whether `forward` should give up; whoever calls it takes this back first.
    """

    def __init__(self, engine: LeanEngine, job: Job) -> None:
        self._engine = engine
        self._model = engine.model
        self._job = job
        self._work = Workspace(engine.model.plan)
        counts = engine.counts
        self._counters = np.array(
            [[layer.ctypes.data for layer in kind] for kind in (counts.decode, counts.prefill)], np.int64
        )
        self.clock = engine.clock
        self.waited_s = 0.0
        self.abandoned = False
        self._asked: Call[dict[int, Tensor]] | None = None
        self._rows: Rows[Row] = ()
        self._away: list[tuple[GenerationStats, int]] = []
        self._also: list[NDArray[np.int64]] = []
        """Tables that the rows of the last forward name by address."""

    @property
    def forks(self) -> bool:
        """Whether rows may be read into several sequences at once."""
        return True

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
        self._rows, self._away, self.waited_s = rows, [], 0.0
        model, plan = self._model, self._model.plan
        lengths = self._enter(rows)
        at, last, joining, count, crew = 0, len(plan.layers), False, len(rows), crew_here()
        while at < last:
            self._look()
            snapshot = self._engine.resident.snapshot()
            pausing = not joining and model.layer_s(count) > 2 * SLICE_S
            end = min(last, at + model.layers_a_slice(count))
            began, joined = perf_counter(), joining
            if crew is not None:
                crew.rouse()
            reached = self._run(snapshot, at, end, joining, pausing)
            took_s = perf_counter() - began
            joining = reached < 0
            if joining:
                reached = -1 - reached
                took_s += self._experts(snapshot, reached, pausing)
            if reached + joining > at + joined:  # a join alone says little of what layers take
                model.account(took_s, reached + joining - at - joined, count)
            at = reached
            del snapshot  # it would keep what is evicted
        for sequence, length in lengths.items():
            sequence.length = length
        self._count(rows)
        return self._logits(rows)

    def abandon(self) -> None:
        """Make a forward under way raise soon, wherever it is; on any thread. Nobody wants its rows any more."""
        self.abandoned = True
        asked = self._asked
        if asked is not None:
            asked.abandon()

    def _look(self) -> None:
        self._job.checkpoint()
        if self.abandoned:
            raise BatchAbandonedError

    def _enter(self, rows: Rows[Row]) -> dict[Sequence, int]:
        """Have room for the rows, describe them to the compiled step and embed them; returns the lengths to come."""
        plan, work, table = self._model.plan, self._work, self._work.rows
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
        for number, (row, at) in enumerate(zip(rows, positions, strict=True)):
            cos, sin = self._model.rotation(at, row.sequence.long)
            kind = -1 if row.local else 0 if row.decode else 1
            table[number] = row.sequence.table.ctypes.data, at, cos, sin, kind, row.local, self._others(row)
        work.fit(len(rows), max(lengths.values()))
        tokens = np.array([row.token for row in rows], np.int64)
        embed(plan.tag, plan.embedding.data_ptr(), tokens, int(work.places[Place.X]), int(plan.shape[Shape.HIDDEN]))
        return lengths

    def _others(self, row: Row) -> int:
        """Address of the table of a row's further sequences; 0 if it has none."""
        if not row.also:
            return 0
        self._also.append(np.array([len(row.also), *(s.table.ctypes.data for s in row.also)], np.int64))
        return int(self._also[-1].ctypes.data)

    def _run(self, snapshot: ResidentSnapshot, begin: int, end: int, joining: bool, pausing: bool) -> int:
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
            end,
            joining,
            pausing,
        )

    def _experts(self, snapshot: ResidentSnapshot, at: int, dividing: bool) -> float:
        """Have a routed layer's experts computed, the mesh's meanwhile; returns the seconds that the own ones took."""
        moe = int(self._model.plan.layers[at, Layer.MOE])
        missing = self._missing(snapshot, at)
        asked = self._send(moe, missing) if len(missing) else None
        try:
            took_s = self._compute(snapshot, at, dividing)
        except BaseException:
            if asked is not None:
                asked.call.abandon()
            raise
        if asked is not None:
            self._receive(asked)
        return took_s

    def _compute(self, snapshot: ResidentSnapshot, at: int, dividing: bool) -> float:
        """Compute a layer's resident experts, in parts of about a millisecond where a layer takes long."""
        plan, work = self._model.plan, self._work
        layer = plan.layers[at]
        moe, experts = int(layer[Layer.MOE]), int(layer[Layer.EXPERTS])
        parts = min(experts, int(self._model.layer_s(work.count) / SLICE_S) + 1) if dividing else 1
        took_s = 0.0
        for part in range(parts):
            if part:
                self._look()
            began = perf_counter()
            compute_resident(
                plan.tag,
                plan.shape,
                layer,
                work.places,
                snapshot.addresses[moe],
                work.chosen[moe],
                work.sorting,
                work.count,
                experts * part // parts,
                experts * (part + 1) // parts,
            )
            took_s += perf_counter() - began
        return took_s

    def _missing(self, snapshot: ResidentSnapshot, at: int) -> list[Pair]:
        """All that is not resident, experts and rows ascending."""
        layer = self._model.plan.layers[at]
        moe, top_k = int(layer[Layer.MOE]), int(layer[Layer.TOP_K])
        chosen = self._work.chosen[moe, :, :top_k]
        if len(chosen) <= _FEW_ROWS:
            present = snapshot.present[moe]
            return sorted(
                (expert, row, place)
                for row, experts in enumerate(chosen.tolist())
                for place, expert in enumerate(experts)
                if expert >= 0 and not present[expert]
            )
        rows, places = np.nonzero((chosen >= 0) & (snapshot.addresses[moe, chosen, 0] == 0))
        return sorted(zip(chosen[rows, places].tolist(), rows.tolist(), places.tolist(), strict=True))

    # Plain Python from here on: a decode step has a handful of pairs, for which a numpy call costs more than a loop.
    # So do torch's: each of them takes some 10 us when the caches have seen other things since the last.

    def _send(self, moe: int, missing: list[Pair]) -> _Asked:
        """Ask the mesh for the missing experts of a layer, for all rows at once."""
        remote = self._engine.remote
        if remote is None:
            named = ", ".join(str(ExpertId(moe, expert)) for expert in sorted({expert for expert, _, _ in missing}))
            raise ExpertUnavailableError(f"not resident, and this node has no peers to ask: experts {named}")
        if self._work.count == 1:
            needed, hidden = [0], self._work.hidden
        else:
            needed = sorted({row for _, row, _ in missing})
            whole = len(needed) == self._work.count
            hidden = self._work.hidden if whole else self._work.hidden.index_select(0, torch.tensor(needed))
        within = {row: at for at, row in enumerate(needed)}
        by_expert: dict[int, list[int]] = {}
        for expert, row, _ in missing:
            by_expert.setdefault(expert, []).append(within[row])
        concerned = [self._rows[row] for row in needed]
        decode = any(row.decode for row in concerned)
        # As patient as the most patient of them; if that is in vain, the others can still be tried alone.
        stats = GenerationStats(stalled_s=min([row.stats.stalled_s for row in concerned]))
        taken: set[int] = set()

        def take(experts: Rows[int], data: Frame) -> bool:
            pairs = self._places(missing)
            places = [at for wanted in experts for expert, at in pairs if expert == wanted]
            if not self._engine.little.take(data, places):
                return False
            taken.update(experts)
            return True

        call = self._job.ask(remote, LayerCall(moe, hidden, by_expert, decode, stats, take))
        return _Asked(call, moe, hidden, by_expert, missing, stats, taken)

    def _places(self, missing: list[Pair]) -> list[tuple[int, int]]:
        """For each pair its expert, and the address of its place among the outputs."""
        top_k, outputs = self._model.plan.top_k, self._work.outputs
        row_bytes, start = 4 * outputs.shape[2], outputs.data_ptr()
        return [(expert, start + (row * top_k + place) * row_bytes) for expert, row, place in missing]

    def _receive(self, asked: _Asked) -> None:
        """Wait for the missing experts' outputs and put them where the others' are."""
        began, stalled_s = self.clock(), asked.stats.stalled_s
        self._asked = asked.call
        try:
            if self.abandoned:
                asked.call.abandon()
            replies = asked.call.wait()
        except CallAbandonedError:
            raise BatchAbandonedError from None
        finally:
            self._asked = None
            self._account(asked, self.clock() - began, asked.stats.stalled_s - stalled_s)
        if len(asked.taken) == len(asked.rows):
            return
        hidden, places, at = asked.hidden.shape[1], self._places(asked.missing), 0
        moves: list[int] = []
        for expert, numbers in asked.rows.items():
            first, at = at, at + len(numbers)
            if expert in asked.taken:
                continue
            reply, shape = replies.get(expert), (len(numbers), hidden)
            if reply is None or reply.shape != shape or reply.dtype != asked.hidden.dtype:
                found = "nothing" if reply is None else f"{tuple(reply.shape)} {reply.dtype}"
                raise PeerError(
                    f"expert {ExpertId(asked.layer, expert)}: the mesh answered {found}, not {shape} "
                    f"{asked.hidden.dtype}"
                )
            replies[expert] = reply = reply.contiguous()  # which the dict keeps
            row_bytes = hidden * reply.element_size()
            for number, (_, place) in enumerate(places[first:at]):
                moves += (reply.data_ptr() + number * row_bytes, place)
        spread(self._model.plan.tag, np.array(moves, np.int64), hidden)

    def _account(self, asked: _Asked, waited_s: float, stalled_s: float) -> None:
        """Tell the requests concerned what the call took; bytes in proportion to their shares of it."""
        self.waited_s += waited_s
        by_request: dict[int, tuple[Row, int]] = {}
        shares: dict[int, int] = {}
        for _, number, _ in asked.missing:
            shares[number] = shares.get(number, 0) + 1
        for number, share in sorted(shares.items()):
            row = self._rows[number]
            by_request[id(row.stats)] = (row, by_request.get(id(row.stats), (row, 0))[1] + share)
        for row, share in by_request.values():
            stats = row.stats
            self._away.append((stats, share))
            stats.remote_wait_s += waited_s
            stats.stalled_s += stalled_s
            stats.retries += asked.stats.retries
            stats.sent_bytes += asked.stats.sent_bytes * share // len(asked.missing)
            stats.received_bytes += asked.stats.received_bytes * share // len(asked.missing)
            if row.decode:
                stats.decode_rounds += 1
            else:
                stats.prefill_rounds += 1

    def _count(self, rows: Rows[Row]) -> None:
        """Tell requests and node what has been computed; drafts do not count."""
        for row in rows:
            if not row.local:
                row.stats.expert_calls_local += self._model.expert_calls
        for stats, calls in self._away:
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
        self._engine.counts.log.add(self._work.chosen.transpose(1, 0, 2)[rows], decode=decode)

    def _logits(self, rows: Rows[Row]) -> Tensor:
        plan, work = self._model.plan, self._work
        wanted = np.array([at for at, row in enumerate(rows) if row.logits], np.int64)
        vocabulary, hidden = plan.head.shape
        logits = torch.empty(len(wanted), vocabulary)
        if not len(wanted):
            return logits
        weight, bias = plan.norm
        bias_at = 0 if bias is None else bias.data_ptr()
        finish(plan.tag, plan.shape, weight.data_ptr(), bias_at, plan.numbers[Number.NORM_EPS], work.places, wanted)
        x, desk, size = int(work.places[Place.GATHERED]), int(work.places[Place.DESK]), plan.head.element_size()
        block = max(1, _HEAD_BLOCK_BYTES // (hidden * size))
        for begin in range(0, vocabulary, block):
            count = min(block, vocabulary - begin)
            part = logits if count == vocabulary else torch.empty(len(wanted), count)
            if begin:
                self._look()
            at = plan.head.data_ptr() + begin * hidden * size
            head_bias = 0 if plan.head_bias is None else plan.head_bias.data_ptr() + begin * size
            linear(plan.tag, desk, at, head_bias, x, part.data_ptr(), len(wanted), count, hidden)
            if part is not logits:
                logits[:, begin : begin + count] = part
        return logits


class _Asked(NamedTuple):
    """A call to the mesh under way, and what it is about (`LeanBatch._missing`)."""

    call: Call[dict[int, Tensor]]
    layer: int
    hidden: Tensor
    rows: dict[int, list[int]]
    missing: list[Pair]
    stats: GenerationStats
    taken: set[int]
