"""A decode pass for all requests that go together: draft, read pending tokens and drafts in one forward, accept.

One request's part is `RequestDrafts`, the node's is `Drafting`. A pass

1. chooses how many tokens to draft for each request, and by which drafter;
2. writes the drafts, with resident experts or from the text itself, without a word to the mesh;
3. forgets what was read for them, and reads each request's pending token and its drafts through the mesh, in one
   forward;
4. lets each request's sampler choose from the logits one after the other, for as long as its choice was drafted there:
   the choices are what would have been written without drafts, one pass each;
5. forgets the drafts that were wrong, and learns: nobody waits for that, so it is done while the next pass waits.

Without drafts, 3 and 4 are all there is: an ordinary decode step of the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from meshmoe.engine.drafts.acceptance import DEPTH_MAX
from meshmoe.engine.drafts.asked import BOTH, LOOKUPS, PRIORS, Asked, Drafter, DraftPlan
from meshmoe.engine.drafts.chooser import LengthChooser
from meshmoe.engine.drafts.confidence import NO_BAR, Confidence, Guess, Text
from meshmoe.engine.drafts.growing import Growth
from meshmoe.engine.drafts.length import Prospect, promise
from meshmoe.engine.drafts.mode import DraftMode
from meshmoe.engine.drafts.tree import PENDING, Path
from meshmoe.engine.lean.batch import LeanBatch
from meshmoe.engine.lean.blocks import NoBlocksError
from meshmoe.engine.lean.model import ROWS_MAX
from meshmoe.engine.lean.row import Row
from meshmoe.engine.sampling import Choice

NODE_WEIGHT = 0.05
"""How fast the node's record, which new requests begin with, follows its requests'."""

NODES_MAX = 24
"""Drafted tokens that a pass checks for one request, at most."""


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
        plans = self._plan(asked, batch.forks)
        if not any(plan.length or plan.looked_up for plan in plans):
            return self._pass_plainly(batch, asked, plans)
        growths = [
            Growth(one, plan, self._confidence[one.sampler.greedy]) for one, plan in zip(asked, plans, strict=True)
        ]
        try:
            self._write(batch, asked, growths)
            chosen = self._check(batch, asked, growths)
        finally:
            for growth in growths:
                growth.tree.close()
        for one, plan, growth, found in zip(asked, plans, growths, chosen, strict=True):
            _tell(one, plan, growth, len(found) - 1)
            if plan.seen is not None or growth.guesses:
                written = [choice.token_id for choice in found]
                batch.later.postpone(partial(self._learn, one, plan, growth.guesses, written))
        return chosen

    def _pass_plainly(self, batch: LeanBatch, asked: Sequence[Asked], plans: Sequence[DraftPlan]) -> list[list[Choice]]:
        """A pass with no drafts at all."""
        began = batch.clock()
        logits = batch.forward([Row(one.sequence, one.ids[-1], one.stats) for one in asked])
        chosen = [[_choose(batch, one, logits, at)] for at, one in enumerate(asked)]
        self._passed(batch, len(asked), list(range(len(asked))), began)
        for one, plan, (choice,) in zip(asked, plans, chosen, strict=True):
            if plan.seen is not None:
                batch.later.postpone(partial(self._learn, one, plan, {}, [choice.token_id]))
        return chosen

    def _check(self, batch: LeanBatch, asked: Sequence[Asked], growths: Sequence[Growth]) -> list[list[Choice]]:
        """Read pending tokens and drafts through the mesh, and choose."""
        began = batch.clock()
        try:
            logits = self._read(batch, asked, growths)
        except NoBlocksError:
            if not any(growth.tree.nodes for growth in growths):
                raise
            for growth in growths:
                growth.tree.clear()  # there may be room without them
            logits = self._read(batch, asked, growths)
        chosen: list[list[Choice]] = []
        used: list[int] = []
        begin = 0
        for one, growth in zip(asked, growths, strict=True):
            count = 1 + len(growth.tree.nodes)
            found, rows = self._accept(batch, one, growth, logits, begin)
            chosen.append(found)
            used += rows
            begin += count
        self._passed(batch, begin, used, began)
        return chosen

    def _passed(self, batch: LeanBatch, rows: int, used: list[int], began: float) -> None:
        """Learn from a pass over so many rows, of which some were of use."""
        took_s, waited_s = batch.clock() - began, batch.waited_s
        batch.later.catch_up()  # with what there was no wait for
        batch.later.postpone(partial(self._chooser.note_pass, rows, took_s, waited_s))
        batch.note_demand(used, decode=True)  # drafts that were wrong are no demand: experts would move for them

    def _read(self, batch: LeanBatch, asked: Sequence[Asked], growths: Sequence[Growth]) -> Tensor:
        pairs = zip(asked, growths, strict=True)
        return batch.forward([row for one, growth in pairs for row in growth.tree.rows(one.ids[-1], one.stats)])

    def _accept(
        self, batch: LeanBatch, one: Asked, growth: Growth, logits: Tensor, begin: int
    ) -> tuple[list[Choice], list[int]]:
        """What the sampler chooses, and after which rows; those of the request stand from ``begin`` on."""
        rows = {node: row for row, node in enumerate((PENDING, *growth.tree.nodes), begin)}
        chosen, used, node = [_choose(batch, one, logits, begin)], [begin], PENDING
        while (row := rows.get((*node, chosen[-1].token_id))) is not None:
            if chosen[-1].token_id in one.ends or one.sampler.complete:
                break
            node = (*node, chosen[-1].token_id)
            used.append(row)
            chosen.append(_choose(batch, one, logits, row))
        growth.tree.take(node)
        return chosen, used

    def _plan(self, asked: Sequence[Asked], forks: bool) -> list[DraftPlan]:
        most = max(0, min(DEPTH_MAX, ROWS_MAX // len(asked) - 1))
        limits = [min(most, one.mode.length, one.room) for one in asked]
        for one in asked:
            if one.mode.kind in ("auto", "lookup"):
                one.drafts.catch_up(one.ids)
        choose = [at for at, one in enumerate(asked) if one.mode.kind == "auto"]
        nodes = min(NODES_MAX, ROWS_MAX // len(asked) - 1) if forks else 0
        best = self._best([asked[at] for at in choose], [limits[at] for at in choose], nodes) if choose else []
        chosen = dict(zip(choose, best, strict=True))
        pairs = enumerate(zip(asked, limits, strict=True))
        return [chosen.get(at) or _as_told(one, limit) for at, (one, limit) in pairs]

    def _best(self, asked: Sequence[Asked], limits: Sequence[int], nodes_max: int) -> list[DraftPlan]:
        """For each request the drafter that promises more for it alone, and the lengths that are best together."""
        chooser, options, seen = self._chooser, [], []
        pass_s, draft_s, row_s = chooser.pass_s, chooser.draft_s, chooser.row_s
        for one, limit in zip(asked, limits, strict=True):
            records = one.drafts.records
            drafter, found = _look_up(one, limit)
            best = Prospect(_survival(one, drafter if found and nodes_max else None)[:limit], costs=True)
            if found:
                free = Prospect(records[drafter].survival()[: len(found)], costs=False)
                if promise(free, pass_s, draft_s, row_s) >= promise(best, pass_s, draft_s, row_s):
                    best = free
            options.append(best)
            seen.append((drafter, found))
        lengths = chooser.lengths(options)
        drafting = any(length and option.costs for length, option in zip(lengths, options, strict=True))
        shared, exploring = chooser.bar(options, lengths) if drafting else NO_BAR, chooser.exploring
        plans = []
        for at, (prospect, length, limit) in enumerate(zip(options, lengths, limits, strict=True)):
            if not prospect.costs:
                plans.append(DraftPlan(seen[at][0], length, seen[at][1][:length], seen=seen[at]))
            elif not length or shared is NO_BAR or at in exploring:
                plans.append(DraftPlan("local", length, planned=length, seen=seen[at]))
            else:
                plans.append(DraftPlan("local", limit, (), shared, nodes_max, length, seen=seen[at]))
        return plans

    def _write(self, batch: LeanBatch, asked: Sequence[Asked], growths: Sequence[Growth]) -> None:
        """Write the drafts, one depth of all trees after the other; sequences are left as they were."""
        going = list(zip(asked, growths, strict=True))
        try:
            while going := [(one, growth) for one, growth in going if growth.going]:
                places = [(one, growth, node) for one, growth in going for node in growth.going]
                rows = [
                    Row(growth.tree.sequence(node), growth.token(node), one.stats, local=True)
                    for one, growth, node in places
                ]
                began = batch.clock()
                logits = batch.forward(rows)
                for _, growth in going:
                    growth.going = []
                for (_, growth, node), row in zip(places, logits, strict=True):
                    growth.branch(node, row)
                self._chooser.note_draft(len(rows), batch.clock() - began)
        except NoBlocksError:
            pass  # what was drafted so far is as good
        finally:
            for growth in growths:
                growth.tree.clear()
        for growth in growths:
            growth.follow_text()
        self._keep(growths)

    def _keep(self, growths: Sequence[Growth]) -> None:
        """Say what is checked: all that was offered, or where there is a bar the best of it over all requests."""
        ranked = [sorted(growth.offers, key=lambda node: -growth.offers[node])[1:] for growth in growths]
        barred = [at for at, growth in enumerate(growths) if growth.plan.bar is not NO_BAR]
        for at in barred:
            ranked[at] = ranked[at][: max(growths[at].plan.length, growths[at].plan.nodes_max)]
        if barred:
            offers = sorted(((growths[at].offers[node], at) for at in barred for node in ranked[at]), reverse=True)
            fixed = len(growths) + sum(len(nodes) for at, nodes in enumerate(ranked) if at not in barred)
            rate = growths[barred[0]].plan.bar.rate
            kept = Counter(at for _, at in offers[: self._chooser.keep([chance for chance, _ in offers], fixed, rate)])
            for at in barred:
                ranked[at] = ranked[at][: kept[at]]
            planned = fixed + sum(growths[at].plan.planned for at in barred)
            self._chooser.note_rows(planned, fixed + sum(kept.values()))
        for growth, nodes in zip(growths, ranked, strict=True):
            growth.keep(nodes)

    def _learn(
        self, one: Asked, plan: DraftPlan, guesses_behind: Mapping[Path, Sequence[Guess]], written: Sequence[int]
    ) -> None:
        """Learn from what was written: of drafts that were checked, and of those that only might have been."""
        if plan.seen is not None:
            drafter, tokens = plan.seen
            known = min(len(tokens), len(written))
            right = next((at for at in range(known) if tokens[at] != written[at]), known)
            self._note(one, drafter, [True] * right + [False] * (known > right))
        if plan.drafter != "local":
            return
        firsts: list[bool] = []
        either: list[bool] = []
        node = PENDING
        for token in written:
            guesses = guesses_behind.get(node)
            if guesses is None:
                break
            for guess in guesses:
                self._confidence[one.sampler.greedy].note(guess, guess.token == token)
            firsts.append(guesses[0].token == token)
            same = (Text.SAME, Text.SURELY_SAME)
            either.append(firsts[-1] or any(guess.token == token and guess.text in same for guess in guesses))
            node = (*node, token)
        self._note(one, "local", firsts)
        if plan.wide and plan.seen is not None and plan.seen[1]:
            self._note(one, BOTH[plan.seen[0]], either)

    def _note(self, one: Asked, drafter: Drafter, right: Sequence[bool]) -> None:
        """At each depth, whether a drafter was right there."""
        if right:
            record, node = one.drafts.records[drafter], self.chances[one.sampler.greedy][drafter]
            record.note_each(right)
            for depth, chance in enumerate(record.chances()[: len(right)]):
                node[depth] += NODE_WEIGHT * (chance - node[depth])


def _choose(batch: LeanBatch, one: Asked, logits: Tensor, row: int) -> Choice:
    """The token behind a row of the last forward, all of whose logits were wanted."""
    return one.sampler.take(batch.best[row] if batch.best else -1) or one.sampler.choose(logits[row])


def _tell(one: Asked, plan: DraftPlan, growth: Growth, accepted: int) -> None:
    """Tell a request what was drafted for it, and how much of that was right."""
    if not growth.tree.nodes:
        return
    depth = max(map(len, growth.tree.nodes))
    one.stats.drafted_tokens += len(growth.tree.nodes)
    one.stats.drafted_depth += depth
    one.stats.looked_up_depth += depth if plan.drafter != "local" else 0
    one.stats.accepted_tokens += accepted


def _as_told(one: Asked, limit: int) -> DraftPlan:
    """For a request whose mode leaves nothing to choose."""
    match one.mode.kind:
        case "fixed":
            return DraftPlan("local", limit)
        case "lookup":
            drafter, tokens = _look_up(one, limit)
            return DraftPlan(drafter, len(tokens), tokens, seen=(drafter, tokens))
    return DraftPlan("local", 0)


def _survival(one: Asked, drafter: Drafter | None) -> list[float]:
    """The chance that a draft lives to each depth, with what a lookup found beside it."""
    records = one.drafts.records
    if drafter is None:
        return records["local"].survival()
    alive, found = 1.0, []
    for together in zip(*(records[who].chances() for who in ("local", drafter, BOTH[drafter])), strict=True):
        alive *= max(together)
        found.append(alive)
    return found


def _look_up(one: Asked, limit: int) -> tuple[Drafter, Sequence[int]]:
    found, context = one.drafts.lookup.draft(limit) if limit else ((), 0)
    return LOOKUPS.get(context, "lookup 2"), found
