"""Placing for drafts on a running node: where drafts are measured to pay, its cost is rounds per accepted token.

A pass over a pending token and ``K`` drafts waits at a layer if any of its rows does, and tells several tokens. So the
node's decode demand is taken as passes of ``K + 1`` rows, as many as its tokens ask for, and a call sent away costs,
beside its own time, what it takes from the tokens of a pass: drafts are made with the experts at home.
`meshmoe.placement.drafted` does the same for `meshmoe plan`; here everything is the node's own measurement: how long
its passes are, how many tokens they tell, what a token takes, and what share of its calls is at home.

How the chance of a right draft changes with that share is one number, learned from one point: with everything at home
every draft would be right (it is the model itself), and with the present share the chance is what was measured.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from meshmoe.placement.drafted import tokens_per_pass
from meshmoe.placement.trace import Steps

PASSES_MIN = 64
"""Passes that are enough to say whether drafts pay."""

DRAFTED_MIN = 1.0
"""Tokens guessed for a pass, on average, by whoever chooses how many pay: fewer are no reason to place for them."""

CHANCE_MAX = 0.99
"""Of a right draft, as far as placement reckons."""

FAR_S = 1e-3
"""A round trip must take so long. Nodes that place for drafts write 23 and 22 % faster over links of 20 ms, 8 and 30 %
over 5 ms, 22 and 25 % over 1.2 ms (bundled model, redundancy 1.2 and 1.5). Shorter ones were not measured."""


class DraftsSeen(NamedTuple):
    """What was measured of a node's latest decode passes.

    Attributes:
        passes: How many.
        tokens: That they told.
        drafted: Tokens guessed for them.
        depth: Of these, the longest branch of every pass, together; as many as ``drafted`` where all drafts are chains.
        looked_up: Of that depth, in passes that asked no expert for their drafts: as good wherever experts are.
        decode_s: That they took.
        hit: Share of their calls served at home.
    """

    passes: int
    tokens: int
    drafted: int
    depth: int
    looked_up: int
    decode_s: float
    hit: float


class Drafting(NamedTuple):
    """How a node drafts, as far as placement cares.

    Attributes:
        rows: Of a pass: the drafts and one. All branches of a tree count, since a layer waits for any of them.
        tokens: That a pass tells.
        home_s: What a pass would save if all of its calls were at home instead of none, in better drafts alone.
    """

    rows: int
    tokens: float
    home_s: float


def drafting(seen: DraftsSeen | None, far_s: float) -> Drafting | None:
    """How a node drafts, or None where it should place as if it did not.

    Args:
        seen: Measured; None where nothing was.
        far_s: A round trip to a peer.
    """
    if seen is None or seen.passes < PASSES_MIN or far_s < FAR_S:
        return None
    if seen.drafted < DRAFTED_MIN * seen.passes or seen.tokens <= seen.passes or seen.hit >= 1.0:
        return None
    tokens, length = seen.tokens / seen.passes, max(1, round(seen.depth / seen.passes))
    tokens = min(tokens, tokens_per_pass(CHANCE_MAX, length))  # lengths vary: a rounded one may tell less than they did
    chance = _chance(tokens, length)
    loss = min(1.0, (1.0 - chance) / (1.0 - seen.hit)) * (1.0 - seen.looked_up / max(1, seen.depth))
    slope = sum(depth * chance ** (depth - 1) for depth in range(1, length + 1))
    return Drafting(round(seen.drafted / seen.passes) + 1, tokens, seen.decode_s / seen.tokens * slope * loss)


def as_passes(chunks: Steps, decode: Steps, how: Drafting) -> tuple[Steps, float]:
    """Decode demand as passes.

    Args:
        chunks: Passes of ``how.rows`` rows each, in their shares.
        decode: The same demand, token by token.
        how: The node drafts.

    Returns:
        As many as the tokens ask for; and seconds that a row sent away takes from the tokens of a pass.
    """
    passes = chunks.scaled(decode.tokens_per_s / how.tokens / chunks.rates.sum())
    calls = float(passes.rates @ passes.rows.sum(axis=(1, 2))) / float(passes.rates.sum())
    return passes, how.home_s / calls


def _chance(tokens: float, length: int) -> float:
    """The chance of a right draft with which a pass of so many drafts tells so many tokens: 1 + a + ... + a^length."""
    roots = np.polynomial.polynomial.polyroots([1.0 - tokens, *[1.0] * length])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-6))  # the only positive one
