"""One request's drafts in the making: a tree that grows where it promises most, fed by the drafter and the text.

Each guess for the place behind a node comes with a chance (`confidence`); one that may be worth its row is offered, and
one that promises to be worth the drafting is drafted behind. Which offers are checked is chosen over all requests. What
was found in the text is one more guess for as long as the branch is the one found, and goes on by itself where drafting
stops, as it costs none.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from meshmoe.engine.drafts.asked import LOOKUPS, Asked, DraftPlan
from meshmoe.engine.drafts.confidence import LOOKED_UP, NO_BAR, WIDTH, Confidence, Guess, Text
from meshmoe.engine.drafts.tree import PENDING, DraftTree, Path
from meshmoe.engine.lean.blocks import NoBlocksError

LONG_CONTEXT = max(LOOKUPS)
"""So many tokens that were found again, before the draft or in it, make what follows likely."""

_CONTEXTS = {drafter: context for context, drafter in LOOKUPS.items()}


class Growth:
    """See the module.

    Attributes:
        tree: While drafting, the nodes that are drafted behind; then, what is checked.
        guesses: By node that was drafted behind, what was thought of the next token; used or not.
        offers: What may be checked, with the chance that it is written; a node never before the one that it is behind.
        going: Nodes to draft behind next.
    """

    def __init__(self, one: Asked, plan: DraftPlan, confidence: Confidence) -> None:
        self.tree = DraftTree(one.sequence)
        self.guesses: dict[Path, list[Guess]] = {}
        self.offers: dict[Path, float] = {PENDING: 1.0}
        self.plan = plan
        self._one = one
        self._confidence = confidence
        self._drafter, self._found = plan.seen if plan.seen is not None and plan.wide else ("local", ())
        self.going = [PENDING] if plan.drafter == "local" and plan.length else []
        for depth in range(len(plan.looked_up)):
            self.offers[tuple(plan.looked_up[: depth + 1])] = 1.0

    def token(self, node: Path) -> int:
        """Of a node, or the pending one."""
        return node[-1] if node else self._one.ids[-1]

    def branch(self, node: Path, logits: Tensor) -> None:
        """Take up what was drafted behind a node, and go on with what is worth it."""
        guesses = self.guesses[node] = self._guess(node, logits)
        for guess in guesses:
            alive, behind = self.offers[node] * self._confidence.chance(guess), (*node, guess.token)
            if alive < self.plan.bar.checked:
                continue
            self.offers[behind] = alive
            if self._goes_on(behind):
                try:
                    self.tree.add(behind)
                except NoBlocksError:
                    continue  # it may still be checked
                self.going.append(behind)

    def follow_text(self) -> None:
        """Where the branch that was found in the text was drafted no further, offer what was found beyond."""
        depth = 0
        while depth < len(self._found) and tuple(self._found[: depth + 1]) in self.offers:
            depth += 1
        if not depth or tuple(self._found[:depth]) in self.guesses:
            return  # not taken up, or weighed and found not worth it
        chances = self._one.drafts.records[self._drafter].chances()
        for at in range(depth, len(self._found)):
            node = tuple(self._found[:at])
            alive = self.offers[node] * chances[at]
            if alive < self.plan.bar.checked or node[-1] in self._one.ends:
                return
            self.offers[*node, self._found[at]] = alive

    def keep(self, nodes: Iterable[Path]) -> None:
        """Check these, likeliest first, each behind one that is checked, or as many as there is room for."""
        self.tree.clear()
        for node in nodes:
            if node[:-1] in self.tree:
                try:
                    self.tree.add(node)
                except NoBlocksError:
                    continue

    def _guess(self, path: Path, logits: Tensor) -> list[Guess]:
        one = self._one
        tokens = one.sampler.guesses(logits, path, WIDTH if self.plan.wide else 1)
        if one.mode.kind != "auto":
            return [Guess(tokens[0])]
        values = logits.float().numpy()
        highest = values.max()
        total = float(np.exp(values - highest).sum())
        on_it = len(path) < len(self._found) and path == tuple(self._found[: len(path)])
        found = self._found[len(path)] if on_it else None
        ranked = list(enumerate(tokens))
        if found is not None and found not in tokens:
            ranked.append((LOOKED_UP, found))
        return [
            Guess(
                token,
                float(np.exp(values[token] - highest)) / total,
                rank,
                self._says(token, found, len(path)),
            )
            for rank, token in ranked
        ]

    def _says(self, token: int, found: int | None, depth: int) -> Text:
        if found is None:
            return Text.SILENT
        surely = _CONTEXTS[self._drafter] + depth >= LONG_CONTEXT
        if token == found:
            return Text.SURELY_SAME if surely else Text.SAME
        return Text.SURELY_OTHER if surely else Text.OTHER

    def _goes_on(self, node: Path) -> bool:
        """Whether it is worth drafting behind a new node."""
        one, plan, depth = self._one, self.plan, len(node)
        if depth >= plan.length or node[-1] in one.ends or len(self.tree.nodes) >= max(plan.length, plan.nodes_max):
            return False
        if plan.bar is NO_BAR:
            return True
        return self.offers[node] * one.drafts.records["local"].chances()[depth] >= plan.bar.drafted
