"""A decode pass for all requests that go together: draft, read pending tokens and drafts in one forward, accept.

One request's part is `RequestDrafts`, the node's is `Drafting`. A pass

1. chooses how many tokens to draft for each request, and by which drafter;
2. writes the drafts, with resident experts or from the text itself, without a word to the mesh;
3. forgets what was read for them, and reads each request's pending token and its drafts through the mesh, in one
   forward;
4. lets each request's sampler choose from the logits one after the other, for as long as its choice is the next draft:
   the choices are what would have been written without drafts, one pass each;
5. forgets the drafts that were wrong, and learns.

Without drafts, 3 and 4 are all there is: an ordinary decode step of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from torch import Tensor

from meshmoe.engine.drafts.acceptance import DEPTH_MAX, Acceptance
from meshmoe.engine.drafts.chooser import LengthChooser
from meshmoe.engine.drafts.length import Prospect, promise
from meshmoe.engine.drafts.lookup import PromptLookup
from meshmoe.engine.drafts.mode import DraftMode
from meshmoe.engine.lean.batch import LeanBatch, Row
from meshmoe.engine.lean.blocks import NoBlocksError
from meshmoe.engine.lean.blocks import Sequence as LeanSequence
from meshmoe.engine.lean.model import ROWS_MAX
from meshmoe.engine.request import GenerationStats
from meshmoe.engine.sampling import Choice, Sampler

Drafter = Literal["local", "lookup"]

PRIORS: dict[Drafter, float] = {"local": 0.6, "lookup": 0.5}
"""Chances of a draft before anything was seen on this node."""

NODE_WEIGHT = 0.05
"""How fast the node's record, which new requests begin with, follows its requests'."""


class RequestDrafts:
    """What drafting keeps of one request.

    Attributes:
        records: How good each drafter's drafts were here.
        lookup: The text, for looking up.
    """

    def __init__(self, drafting: Drafting) -> None:
        """Begin with what other requests taught."""
        self.records = {drafter: Acceptance(chances) for drafter, chances in drafting.chances.items()}
        self.lookup = PromptLookup()

    def catch_up(self, ids: Sequence[int]) -> None:
        """Take in what was written since."""
        for at in range(self.lookup.length, len(ids)):
            self.lookup.push(ids[at])


@dataclass(slots=True)
class Asked:
    """A request that takes part in a pass.

    Attributes:
        sequence: What it has read.
        ids: Its text; all but the last token has been read.
        sampler: Chooses its tokens.
        stats: Its counters.
        drafts: Its part of drafting.
        room: How many tokens more may be written behind the next one: drafts beyond are of no use.
        ends: Tokens that end the text.
    """

    sequence: LeanSequence
    ids: Sequence[int]
    sampler: Sampler
    stats: GenerationStats
    drafts: RequestDrafts
    room: int
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """What is to be drafted for one request."""

    drafter: Drafter
    length: int
    looked_up: Sequence[int] = field(default=())


class Drafting:
    """See the module. Belongs to the compute thread.

    Attributes:
        mode: What the user said.
        chances: What a new request begins with, by drafter and depth.
    """

    def __init__(self, mode: DraftMode) -> None:
        self.mode = mode
        self.chances: dict[Drafter, list[float]] = {drafter: [p] * DEPTH_MAX for drafter, p in PRIORS.items()}
        self._chooser = LengthChooser()

    def advance(self, batch: LeanBatch, asked: Sequence[Asked]) -> list[list[Choice]]:
        """Take every request at least one token further.

        After an error, or a cancellation, the sequences are as they were, and the samplers, too.

        Args:
            batch: Computes.
            asked: The requests, at most as many as a forward has rows.

        Returns:
            For each request the tokens chosen, in order. All of them but the last have been read.

        Raises:
            NoBlocksError: There is no room for the pending tokens' keys and values.
            ExpertUnavailableError: An expert cannot be had.
            PeerError: The mesh answered something else than what was asked.
        """
        plans = self._plan(asked)
        drafts = self._write(batch, asked, plans)
        before = [one.sequence.length for one in asked]
        try:
            logits = self._read(batch, asked, drafts)
        except NoBlocksError:
            if not any(drafts):
                raise
            drafts = [[] for _ in asked]  # there may be room without them
            logits = self._read(batch, asked, drafts)
        chosen, at = [], 0
        for one, length, draft in zip(asked, before, drafts, strict=True):
            found = self._accept(one, draft, logits[at : at + len(draft) + 1])
            one.sequence.truncate(length + len(found))
            chosen.append(found)
            at += len(draft) + 1
        self._learn(asked, plans, [len(draft) for draft in drafts], [len(found) - 1 for found in chosen])
        return chosen

    def _read(self, batch: LeanBatch, asked: Sequence[Asked], drafts: Sequence[Sequence[int]]) -> Tensor:
        rows = [
            Row(one.sequence, token, one.stats)
            for one, draft in zip(asked, drafts, strict=True)
            for token in (one.ids[-1], *draft)
        ]
        began = perf_counter()
        logits = batch.forward(rows)
        self._chooser.note_pass(len(rows), perf_counter() - began, batch.waited_s)
        return logits

    def _accept(self, one: Asked, draft: Sequence[int], logits: Tensor) -> list[Choice]:
        chosen = [one.sampler.choose(logits[0])]
        for token, row in zip(draft, logits[1:], strict=True):
            if chosen[-1].token_id != token or token in one.ends or one.sampler.complete:
                break
            chosen.append(one.sampler.choose(row))
        return chosen

    def _plan(self, asked: Sequence[Asked]) -> list[DraftPlan]:
        most = max(0, min(DEPTH_MAX, self.mode.length, ROWS_MAX // len(asked) - 1))
        limits = [min(most, one.room) for one in asked]
        if self.mode.kind in ("auto", "lookup"):
            for one in asked:
                one.drafts.catch_up(one.ids)
        match self.mode.kind:
            case "off":
                return [DraftPlan("local", 0) for _ in asked]
            case "fixed":
                return [DraftPlan("local", limit) for limit in limits]
            case "lookup":
                found = [one.drafts.lookup.draft(limit) for one, limit in zip(asked, limits, strict=True)]
                return [DraftPlan("lookup", len(tokens), tokens) for tokens in found]
        options = [self._best_drafter(one, limit) for one, limit in zip(asked, limits, strict=True)]
        lengths = self._chooser.lengths([prospect for _, prospect, _ in options])
        return [
            DraftPlan(drafter, length, found[:length])
            for (drafter, _, found), length in zip(options, lengths, strict=True)
        ]

    def _best_drafter(self, one: Asked, limit: int) -> tuple[Drafter, Prospect, Sequence[int]]:
        """The drafter that promises more for a request alone."""
        records = one.drafts.records
        local = Prospect(records["local"].survival()[:limit], costs=True)
        found = one.drafts.lookup.draft(limit) if limit else ()
        if found:
            free = Prospect(records["lookup"].survival()[: len(found)], costs=False)
            pass_s, draft_s = self._chooser.pass_s, self._chooser.draft_s
            if promise(free, pass_s, draft_s) >= promise(local, pass_s, draft_s):
                return "lookup", free, found
        return "local", local, ()

    def _write(self, batch: LeanBatch, asked: Sequence[Asked], plans: Sequence[DraftPlan]) -> list[list[int]]:
        """Write the drafts; sequences are left as they were."""
        drafts = [list(plan.looked_up) for plan in plans]
        going = [at for at, plan in enumerate(plans) if plan.drafter == "local" and plan.length]
        lengths = {at: asked[at].sequence.length for at in going}
        try:
            while going:
                rows = [
                    Row(
                        asked[at].sequence,
                        drafts[at][-1] if drafts[at] else asked[at].ids[-1],
                        asked[at].stats,
                        local=True,
                    )
                    for at in going
                ]
                began = perf_counter()
                logits = batch.forward(rows)
                self._chooser.note_draft(len(rows), perf_counter() - began)
                for row, at in zip(logits, going, strict=True):
                    drafts[at].append(asked[at].sampler.guess(row, drafts[at]))
                going = [
                    at for at in going if len(drafts[at]) < plans[at].length and drafts[at][-1] not in asked[at].ends
                ]
        except NoBlocksError:
            pass  # what was drafted so far is as good
        finally:
            for at, length in lengths.items():
                asked[at].sequence.truncate(length)
        return drafts

    def _learn(
        self, asked: Sequence[Asked], plans: Sequence[DraftPlan], drafted: Sequence[int], accepted: Sequence[int]
    ) -> None:
        for one, plan, checked, right in zip(asked, plans, drafted, accepted, strict=True):
            if not checked:
                continue
            one.stats.drafted_tokens += checked
            one.stats.accepted_tokens += right
            record = one.drafts.records[plan.drafter]
            record.note(checked, right)
            known = self.chances[plan.drafter]
            for depth, chance in enumerate(record.chances()[: right + 1]):
                known[depth] += NODE_WEIGHT * (chance - known[depth])
