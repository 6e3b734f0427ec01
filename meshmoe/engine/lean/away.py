"""Experts that are not resident: what a batch asks of the mesh at a layer, and where the answers belong.

One call goes out for all rows of the batch. Outputs come back on one of two ways: handed over as bytes while they
arrive (`LayerCall.take`), or as tensors in the call's result (`AwayExperts.put`); either way they end up where those of
the resident experts are. Waiting in between, and giving up, is the batch's part (`meshmoe.engine.lean.batch`).

Here is plain Python wherever a decode step passes: it has a handful of pairs, for which a numpy call costs more than a
loop. So do torch's: each of them takes some 10 us when the caches have seen other things since the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from typing import NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from meshmoe.core.errors import ExpertUnavailableError, PeerError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.job import Call, Job
from meshmoe.engine.lean.little import LittleCalls, spread
from meshmoe.engine.lean.model import Workspace
from meshmoe.engine.lean.plan import LeanPlan
from meshmoe.engine.lean.resident import ResidentSnapshot
from meshmoe.engine.lean.row import Row
from meshmoe.engine.lean.tables import Layer
from meshmoe.engine.remote import LayerCall, RemoteExperts
from meshmoe.engine.request import GenerationStats
from meshmoe.wire.frames import Frame

Pair: TypeAlias = tuple[int, int, int]
"""One row's use of one expert: the expert, the row of the batch, the expert's place among those that the row chose."""

_FEW_ROWS = 16
"""For which a loop in plain Python takes less than numpy's calls."""

_COPIED_ROWS_MAX = 64
"""Of a batch whose rows are copied one by one for a call; more go as a tensor does."""


class Asked(NamedTuple):
    """A call to the mesh under way, and what it is about.

    Attributes:
        call: What the job waits for.
        layer: MoE layer ordinal.
        hidden: ``[R, H]``, the layer's input, of all rows of the batch.
        rows: For each expert (ascending), its rows of ``hidden``.
        missing: The pairs that are asked for, as `AwayExperts.missing` has them.
        batch: All rows of the batch.
        stats: Counters of the call.
        taken: Experts whose outputs are where they belong already.
    """

    call: Call[dict[int, Tensor]]
    layer: int
    hidden: Tensor
    rows: dict[int, list[int]]
    missing: list[Pair]
    batch: Rows[Row]
    stats: GenerationStats
    taken: set[int]

    def account(self, waited_s: float, stalled_s: float) -> list[tuple[GenerationStats, int]]:
        """Tell the requests concerned what the call took; bytes in proportion to their shares of it.

        Args:
            waited_s: For how long there was nothing to do but wait for it.
            stalled_s: For how long of that nobody could be asked.

        Returns:
            Each request, and how many expert calls were made for it.
        """
        shares: dict[int, int] = {}
        found: list[tuple[GenerationStats, int]] = []
        of_row: dict[int, Row] = {}
        for _, number, _ in self.missing:
            row = self.batch[number]
            request = id(row.stats)
            if request in shares:
                shares[request] += 1
            else:
                shares[request], of_row[request] = 1, row
        sent, received, pairs = self.stats.sent_bytes, self.stats.received_bytes, len(self.missing)
        for request, share in shares.items():
            row = of_row[request]
            stats = row.stats
            found.append((stats, share))
            stats.remote_wait_s += waited_s
            stats.stalled_s += stalled_s
            stats.retries += self.stats.retries
            stats.sent_bytes += sent * share // pairs
            stats.received_bytes += received * share // pairs
            if row.decode:
                stats.decode_rounds += 1
            else:
                stats.prefill_rounds += 1
        return found


class AwayExperts:
    """See the module. Of one batch, in whose working memory inputs and outputs are."""

    def __init__(
        self, plan: LeanPlan, work: Workspace, remote: RemoteExperts | None, little: LittleCalls, job: Job
    ) -> None:
        """Ask for a batch.

        Args:
            plan: Of the model.
            work: The batch's working memory.
            remote: The mesh; without it whatever is missing is an error.
            little: Takes in answers of few rows.
            job: Which computes the batch.
        """
        self._plan = plan
        self._work = work
        self._remote = remote
        self._little = little
        self._job = job

    def missing(self, snapshot: ResidentSnapshot, at: int) -> list[Pair]:
        """All that the rows chose at layer ``at`` and that is not resident, experts and rows ascending."""
        layer = self._plan.layers[at]
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

    def ask(self, batch: Rows[Row], moe: int, missing: list[Pair]) -> Asked:
        """Ask the mesh for the missing experts of a layer, for all rows at once.

        Args:
            batch: Its rows.
            moe: MoE layer ordinal.
            missing: See `missing`; at least one.

        Raises:
            ExpertUnavailableError: There is no mesh.
        """
        if self._remote is None:
            named = ", ".join(str(ExpertId(moe, expert)) for expert in sorted({expert for expert, _, _ in missing}))
            raise ExpertUnavailableError(f"not resident, and this node has no peers to ask: experts {named}")
        call, taken = self.wanted(batch, moe, missing)
        return self.asked(self._job.ask(self._remote, call), batch, missing, call, taken)

    def asked(
        self,
        under_way: Call[dict[int, Tensor]],
        batch: Rows[Row],
        missing: list[Pair],
        call: LayerCall,
        taken: set[int],
    ) -> Asked:
        """A call that is under way, with what `wanted` has made of it."""
        return Asked(under_way, call.layer, call.hidden, call.rows, missing, batch, call.stats, taken)

    def wanted(self, batch: Rows[Row], moe: int, missing: list[Pair]) -> tuple[LayerCall, set[int]]:
        """What the mesh is to be asked, and where experts are noted whose outputs are where they belong; see `ask`."""
        by_expert: dict[int, list[int]] = {}
        for expert, row, _ in missing:
            if expert in by_expert:
                by_expert[expert].append(row)
            else:
                by_expert[expert] = [row]
        decode, stalled_s = False, math.inf
        for row in {row for _, row, _ in missing}:
            one = batch[row]
            decode = decode or one.decode
            stalled_s = min(stalled_s, one.stats.stalled_s)
        # As patient as the most patient of them; if that is in vain, the others can still be tried alone.
        stats, work = GenerationStats(stalled_s=stalled_s), self._work
        taken: set[int] = set()

        def take(experts: Rows[int], data: Frame) -> bool:
            start, row_bytes, top_k = work.outputs_at, work.output_bytes, self._plan.top_k
            places = [
                start + (row * top_k + place) * row_bytes
                for wanted in experts
                for expert, row, place in missing
                if expert == wanted
            ]
            if not self._little.take(data, places):
                return False
            taken.update(experts)
            return True

        memory = work.memory if len(batch) <= _COPIED_ROWS_MAX else None
        return LayerCall(moe, work.hidden, by_expert, decode, stats, take, memory), taken

    def put(self, asked: Asked, replies: dict[int, Tensor]) -> None:
        """Put outputs where the resident experts' are, but for those that have been taken.

        Args:
            asked: The call; it has ended.
            replies: What it returned.

        Raises:
            PeerError: That is something else than what was asked.
        """
        top_k, hidden, at = self._plan.top_k, asked.hidden.shape[1], 0
        work = self._work
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
            for number, (_, row, place) in enumerate(asked.missing[first:at]):
                to = work.outputs_at + (row * top_k + place) * work.output_bytes
                moves += (reply.data_ptr() + number * row_bytes, to)
        spread(self._plan.tag, np.array(moves, np.int64), hidden)
