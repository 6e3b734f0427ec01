"""One request's drafts in the making: a tree that grows where it promises most, fed by the drafter and the text.

Each guess for the place behind a node comes with a chance (`confidence`); one that is worth its row becomes a node, and
a node that promises to be worth the drafting is drafted behind. What was found in the text is one more guess for as
long as the branch is the one found, and goes on by itself where drafting stops, as it costs none.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from meshmoe.engine.drafts.asked import LOOKUPS, Asked, DraftPlan
from meshmoe.engine.drafts.confidence import LOOKED_UP, NO_BAR, WIDTH, Confidence, Guess, Text
from meshmoe.engine.drafts.tree import PENDING, DraftTree, chain
from meshmoe.engine.lean.blocks import NoBlocksError

LONG_CONTEXT = max(LOOKUPS)
"""So many tokens that were found again, before the draft or in it, make what follows likely."""

_CONTEXTS = {drafter: context for context, drafter in LOOKUPS.items()}


class Growth:
    """See the module.

    Attributes:
        tree: What is to be checked.
        guesses: By node that was drafted behind, what was thought of the next token; used or not.
        going: Nodes to draft behind next.
    """

    def __init__(self, one: Asked, plan: DraftPlan, confidence: Confidence) -> None:
        self.tree = DraftTree(one.sequence)
        self.guesses: dict[int, list[Guess]] = {}
        self._one = one
        self._plan = plan
        self._confidence = confidence
        self._drafter, self._found = plan.seen if plan.seen is not None and plan.wide else ("local", ())
        self.going = [PENDING] if plan.drafter == "local" and plan.length else []
        chain(self.tree, plan.looked_up)

    def token(self, at: int) -> int:
        """Of a node, or the pending one."""
        return self.tree.nodes[at].path[-1] if at != PENDING else self._one.ids[-1]

    def branch(self, at: int, logits: Tensor) -> list[int]:
        """Take up what was drafted behind a node; returns the new nodes that are worth drafting behind."""
        tree, plan = self.tree, self._plan
        guesses = self.guesses[at] = self._guess(at, logits)
        going: list[int] = []
        for guess in guesses:
            alive = tree.alive(at) * self._confidence.chance(guess)
            if alive < plan.bar.checked or len(tree.nodes) >= max(plan.length, plan.nodes_max):
                continue
            try:
                node = tree.add(at, guess.token, alive)
            except NoBlocksError:
                break
            if self._goes_on(node):
                going.append(node)
        return going

    def follow_text(self) -> None:
        """Where the branch that was found in the text was drafted no further, check what was found beyond."""
        at, depth = PENDING, 0
        while depth < len(self._found) and (node := self.tree.child(at, self._found[depth])) is not None:
            at, depth = node, depth + 1
        if not depth or at in self.guesses:
            return  # not taken up, or weighed and found not worth it
        chances = self._one.drafts.records[self._drafter].chances()
        for token, chance in zip(self._found[depth:], chances[depth:], strict=False):
            alive = self.tree.alive(at) * chance
            if alive < self._plan.bar.checked or len(self.tree.nodes) >= self._plan.nodes_max:
                return
            if self.token(at) in self._one.ends:
                return
            at = self.tree.add(at, token, alive)

    def _guess(self, at: int, logits: Tensor) -> list[Guess]:
        one, path = self._one, self.tree.path(at)
        tokens = one.sampler.guesses(logits, path, WIDTH if self._plan.wide else 1)
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

    def _goes_on(self, at: int) -> bool:
        """Whether it is worth drafting behind a new node."""
        one, plan, depth = self._one, self._plan, len(self.tree.path(at))
        if depth >= plan.length or self.token(at) in one.ends:
            return False
        if plan.bar is NO_BAR:
            return True
        return self.tree.alive(at) * one.drafts.records["local"].chances()[depth] >= plan.bar.drafted
