"""What a batch is made of: tokens, each of some text."""

from __future__ import annotations

from typing import NamedTuple

from meshmoe.engine.lean.blocks import Sequence
from meshmoe.engine.request import GenerationStats


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
