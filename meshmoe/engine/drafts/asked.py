"""What drafting knows of one request, and what one pass is to draft for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from meshmoe.engine.drafts.acceptance import Acceptance
from meshmoe.engine.drafts.confidence import NO_BAR, Bar
from meshmoe.engine.drafts.lookup import PromptLookup
from meshmoe.engine.drafts.mode import AUTO, DraftMode
from meshmoe.engine.lean.blocks import Sequence as LeanSequence
from meshmoe.engine.request import GenerationStats
from meshmoe.engine.sampling import Sampler

Drafter = Literal["local", "lookup 2", "lookup 3", "lookup 5", "both 2", "both 3", "both 5"]
"""The number is how many tokens of context were found again: the more, the better what followed them. Both: what is
drafted and what was found, where either may be right."""

PRIORS: dict[Drafter, float] = {
    "local": 0.6,
    "lookup 2": 0.3,
    "lookup 3": 0.4,
    "lookup 5": 0.6,
    "both 2": 0.65,
    "both 3": 0.7,
    "both 5": 0.75,
}
"""Chances of a draft before anything was seen on this node."""

LOOKUPS: dict[int, Drafter] = {2: "lookup 2", 3: "lookup 3", 5: "lookup 5"}

BOTH: dict[Drafter, Drafter] = {"lookup 2": "both 2", "lookup 3": "both 3", "lookup 5": "both 5"}

Chances = Mapping[Drafter, list[float]]
"""By depth."""


class RequestDrafts:
    """What drafting keeps of one request.

    Attributes:
        records: How good each drafter's drafts were here.
        lookup: The text, for looking up.
    """

    def __init__(self, chances: Chances) -> None:
        """Begin with what other requests taught."""
        self.records = {drafter: Acceptance(by_depth) for drafter, by_depth in chances.items()}
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
        length: Tokens in a row, at most.
        looked_up: The draft, if it takes no drafting.
        bar: When to stop sooner.
        nodes_max: Tokens in all; where this is more than ``length``, they may be a tree.
        planned: Tokens that were thought best on average, of a chain.
        seen: What was found in the text, whether it is used or not: what comes of it is learned from in any case.
    """

    drafter: Drafter
    length: int
    looked_up: Sequence[int] = ()
    bar: Bar = NO_BAR
    nodes_max: int = 0
    planned: int = 0
    seen: tuple[Drafter, Sequence[int]] | None = None

    @property
    def wide(self) -> bool:
        """Whether second choices may be checked beside the first."""
        return self.nodes_max > self.length > 0
