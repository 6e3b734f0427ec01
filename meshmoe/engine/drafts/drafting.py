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
from typing import Literal

import numpy as np
from torch import Tensor

from meshmoe.engine.drafts.acceptance import DEPTH_MAX, Acceptance
from meshmoe.engine.drafts.chooser import LengthChooser
from meshmoe.engine.drafts.confidence import NO_BAR, Bar, Confidence
from meshmoe.engine.drafts.length import Prospect, promise
from meshmoe.engine.drafts.lookup import PromptLookup
from meshmoe.engine.drafts.mode import AUTO, DraftMode
from meshmoe.engine.lean.batch import LeanBatch, Row
from meshmoe.engine.lean.blocks import NoBlocksError
from meshmoe.engine.lean.blocks import Sequence as LeanSequence
from meshmoe.engine.lean.model import ROWS_MAX
from meshmoe.engine.request import GenerationStats
from meshmoe.engine.sampling import Choice, Sampler

Drafter = Literal["local", "lookup 2", "lookup 3", "lookup 5"]
"""The number is how many tokens of context were found again: the more, the better what followed them."""

PRIORS: dict[Drafter, float] = {"local": 0.6, "lookup 2": 0.3, "lookup 3": 0.4, "lookup 5": 0.6}
"""Chances of a draft before anything was seen on this node."""

LOOKUPS: dict[int, Drafter] = {2: "lookup 2", 3: "lookup 3", 5: "lookup 5"}

NODE_WEIGHT = 0.05
"""How fast the node's record, which new requests begin with, follows its requests'."""


class RequestDrafts:
    """What drafting keeps of one request.

    Attributes:
        records: How good each drafter's drafts were here.
        lookup: The text, for looking up.
    """

    def __init__(self, drafting: Drafting, greedy: bool) -> None:
        """Begin with what other requests taught, those that take the likeliest token or those that draw."""
        self.records = {drafter: Acceptance(chances) for drafter, chances in drafting.chances[greedy].items()}
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
        mode: What its client said about drafts, or else the node's user.
    """

    sequence: LeanSequence
    ids: Sequence[int]
    sampler: Sampler
    stats: GenerationStats
    drafts: RequestDrafts
    room: int
    ends: frozenset[int] = frozenset()
    mode: DraftMode = AUTO


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """What is to be drafted for one request.

    Attributes:
        drafter: By whom.
        length: Tokens, at most.
        looked_up: The draft, if it takes no drafting.
        bar: When to stop sooner.
        seen: What was found in the text, whether it is used or not: what comes of it is learned from in any case.
    """

    drafter: Drafter
    length: int
    looked_up: Sequence[int] = ()
    bar: Bar = NO_BAR
    seen: tuple[Drafter, Sequence[int]] | None = None


@dataclass(slots=True)
class _Draft:
    """What was drafted: ``tokens`` are checked, ``left`` one more that was not worth it; ``sure`` of each of these."""

    tokens: list[int]
    left: list[int] = field(default_factory=list)
    sure: list[float] = field(default_factory=list)


class Drafting:
    """See the module. Belongs to the compute thread.

    Attributes:
        mode: What the node's user said; a request may say otherwise.
        chances: What a new request begins with, by whether it is greedy, drafter and depth.
    """

    def __init__(self, mode: DraftMode) -> None:
        self.mode = mode
        self.chances: dict[bool, dict[Drafter, list[float]]] = {
            greedy: {drafter: [p] * DEPTH_MAX for drafter, p in PRIORS.items()} for greedy in (False, True)
        }
        self._chooser = LengthChooser()
        self._confidence = {greedy: Confidence() for greedy in (False, True)}

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
        began = batch.clock()
        try:
            logits = self._read(batch, asked, drafts)
        except NoBlocksError:
            if not any(draft.tokens for draft in drafts):
                raise
            drafts = [_Draft([]) for _ in asked]  # there may be room without them
            logits = self._read(batch, asked, drafts)
        chosen, at = [], 0
        used: list[int] = []
        for one, length, draft in zip(asked, before, drafts, strict=True):
            found = self._accept(one, draft.tokens, logits[at : at + len(draft.tokens) + 1])
            one.sequence.truncate(length + len(found))
            chosen.append(found)
            used += range(at, at + len(found))
            at += len(draft.tokens) + 1
        self._chooser.note_pass(at, batch.clock() - began, batch.waited_s)
        batch.note_demand(used, decode=True)  # drafts that were wrong are no demand: experts would move for them
        for one, plan, draft, found in zip(asked, plans, drafts, chosen, strict=True):
            self._learn(one, plan, draft, [choice.token_id for choice in found])
        return chosen

    def _read(self, batch: LeanBatch, asked: Sequence[Asked], drafts: Sequence[_Draft]) -> Tensor:
        rows = [
            Row(one.sequence, token, one.stats)
            for one, draft in zip(asked, drafts, strict=True)
            for token in (one.ids[-1], *draft.tokens)
        ]
        return batch.forward(rows)

    def _accept(self, one: Asked, draft: Sequence[int], logits: Tensor) -> list[Choice]:
        chosen = [one.sampler.choose(logits[0])]
        for token, row in zip(draft, logits[1:], strict=True):
            if chosen[-1].token_id != token or token in one.ends or one.sampler.complete:
                break
            chosen.append(one.sampler.choose(row))
        return chosen

    def _plan(self, asked: Sequence[Asked]) -> list[DraftPlan]:
        most = max(0, min(DEPTH_MAX, ROWS_MAX // len(asked) - 1))
        limits = [min(most, one.mode.length, one.room) for one in asked]
        for one in asked:
            if one.mode.kind in ("auto", "lookup"):
                one.drafts.catch_up(one.ids)
        choose = [at for at, one in enumerate(asked) if one.mode.kind == "auto"]
        best = self._best([asked[at] for at in choose], [limits[at] for at in choose]) if choose else []
        chosen = dict(zip(choose, best, strict=True))
        pairs = enumerate(zip(asked, limits, strict=True))
        return [chosen.get(at) or _as_told(one, limit) for at, (one, limit) in pairs]

    def _best(self, asked: Sequence[Asked], limits: Sequence[int]) -> list[DraftPlan]:
        """For each request the drafter that promises more for it alone, and the lengths that are best together."""
        pass_s, draft_s, options, seen = self._chooser.pass_s, self._chooser.draft_s, [], []
        for one, limit in zip(asked, limits, strict=True):
            records = one.drafts.records
            local = Prospect(records["local"].survival()[:limit], costs=True)
            drafter, found = _look_up(one, limit)
            free = Prospect(records[drafter].survival()[: len(found)], costs=False)
            better = found and promise(free, pass_s, draft_s) >= promise(local, pass_s, draft_s)
            options.append(free if better else local)
            seen.append((drafter, found))
        lengths = self._chooser.lengths(options)
        bar = NO_BAR if self._chooser.exploring else self._chooser.bar(options, lengths)
        plans = []
        for prospect, length, limit, (drafter, found) in zip(options, lengths, limits, seen, strict=True):
            if not prospect.costs:
                plans.append(DraftPlan(drafter, length, found[:length], seen=(drafter, found)))
            else:
                most = limit if length and bar is not NO_BAR else length
                plans.append(DraftPlan("local", most, bar=bar, seen=(drafter, found)))
        return plans

    def _write(self, batch: LeanBatch, asked: Sequence[Asked], plans: Sequence[DraftPlan]) -> list[_Draft]:
        """Write the drafts; sequences are left as they were."""
        drafts = [_Draft(list(plan.looked_up)) for plan in plans]
        alive = [1.0] * len(asked)
        going = [at for at, plan in enumerate(plans) if plan.drafter == "local" and plan.length]
        lengths = {at: asked[at].sequence.length for at in going}
        try:
            while going:
                rows = [
                    Row(
                        asked[at].sequence,
                        drafts[at].tokens[-1] if drafts[at].tokens else asked[at].ids[-1],
                        asked[at].stats,
                        local=True,
                    )
                    for at in going
                ]
                began = batch.clock()
                for row, at in zip(batch.forward(rows), going, strict=True):
                    alive[at] *= self._draft(asked[at], plans[at], drafts[at], row, alive[at])
                self._chooser.note_draft(len(rows), batch.clock() - began)
                going = [at for at in going if self._goes_on(asked[at], plans[at], drafts[at], alive[at])]
        except NoBlocksError:
            pass  # what was drafted so far is as good
        finally:
            for at, length in lengths.items():
                asked[at].sequence.truncate(length)
        return drafts

    def _draft(self, one: Asked, plan: DraftPlan, draft: _Draft, logits: Tensor, alive: float) -> float:
        """Take a token more; returns the chance that it is right if those before it are."""
        token = one.sampler.guess(logits, draft.tokens)
        if one.mode.kind != "auto":
            draft.tokens.append(token)
            return 1.0
        values = logits.float().numpy()
        sure = float(1.0 / np.exp(values - values[token]).sum())
        chance = self._confidence[one.sampler.greedy].chance(sure)
        draft.sure.append(sure)
        (draft.tokens if alive * chance >= plan.bar.checked else draft.left).append(token)
        return chance

    def _goes_on(self, one: Asked, plan: DraftPlan, draft: _Draft, alive: float) -> bool:
        """Whether another token is worth drafting."""
        depth = len(draft.tokens)
        if draft.left or depth >= plan.length or draft.tokens[-1] in one.ends:
            return False
        return plan.bar is NO_BAR or alive * one.drafts.records["local"].chances()[depth] >= plan.bar.drafted

    def _learn(self, one: Asked, plan: DraftPlan, draft: _Draft, written: Sequence[int]) -> None:
        """Learn from what was written: of drafts that were checked, and of those that only might have been."""
        one.stats.drafted_tokens += len(draft.tokens)
        one.stats.accepted_tokens += len(written) - 1
        if plan.seen is not None:
            self._note(one, *plan.seen, written)
        if plan.drafter == "local":
            tokens = [*draft.tokens, *draft.left]
            looked_at = self._note(one, "local", tokens, written)
            for sure, token, right in zip(draft.sure[:looked_at], tokens, written, strict=False):
                self._confidence[one.sampler.greedy].note(sure, token == right)

    def _note(self, one: Asked, drafter: Drafter, tokens: Sequence[int], written: Sequence[int]) -> int:
        """Compare a draft with what was written, as far as both go; returns how many tokens could be looked at."""
        known = min(len(tokens), len(written))
        right = next((at for at in range(known) if tokens[at] != written[at]), known)
        if known:
            record, node = one.drafts.records[drafter], self.chances[one.sampler.greedy][drafter]
            record.note(known, right)
            for depth, chance in enumerate(record.chances()[: right + 1]):
                node[depth] += NODE_WEIGHT * (chance - node[depth])
        return min(known, right + 1)


def _as_told(one: Asked, limit: int) -> DraftPlan:
    """For a request whose mode leaves nothing to choose."""
    match one.mode.kind:
        case "fixed":
            return DraftPlan("local", limit)
        case "lookup":
            drafter, tokens = _look_up(one, limit)
            return DraftPlan(drafter, len(tokens), tokens, seen=(drafter, tokens))
    return DraftPlan("local", 0)


def _look_up(one: Asked, limit: int) -> tuple[Drafter, Sequence[int]]:
    found, context = one.drafts.lookup.draft(limit) if limit else ((), 0)
    return LOOKUPS.get(context, "lookup 2"), found
