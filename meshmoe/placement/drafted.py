"""What drafts change about a placement's cost: tokens share the rounds of a pass, how many depends on the placement.

A pass over a token and ``K`` drafts waits at a layer if any of its rows does, so it has more rounds than a step, and
tells ``1 + a + ... + a^K`` tokens, where ``a`` is the chance that a draft is right. Drafts are made with the experts
at home, so ``a`` rises with the share of calls that find theirs there. Whole layers save rounds, spread experts make
better drafts; here both count.

The rise was measured on the bundled model: 36 placements of a node (four policies, redundancy 1.2, 1.5 and 2, three
kinds of text, five texts each, four drafts a pass) lie within 0.07 (root mean square) of ``1 - 0.75 (1 - hit)``. Other
models may differ.

Tokens a pass belong to all layers together, while placement prices layers one by one. So for deciding, the worth of a
call at home is taken at a given placement and added to the price of sending it: `drafting_world`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from meshmoe.placement.cost import bill
from meshmoe.placement.trace import Steps
from meshmoe.placement.world import Holders, World

LOSS = 0.75
"""How much a draft's chance falls when no call finds its expert at home."""


def acceptance(hit: float) -> float:
    """The chance that a draft is right if all before it are, where this share of calls is served at home."""
    return 1.0 - LOSS * (1.0 - hit)


def tokens_per_pass(chance: float, length: int) -> float:
    """Tokens that a pass over so many drafts tells on average."""
    return float(sum(chance**depth for depth in range(length + 1)))


@dataclass(frozen=True, slots=True)
class DraftDemand:
    """What a node's passes look like.

    Attributes:
        passes: By number of drafts: steps of so many tokens and one.
        draft_s: To draft a token: the trunk and a token's experts.
    """

    passes: Mapping[int, Steps]
    draft_s: float


@dataclass(frozen=True, slots=True)
class DraftBill:
    """What a node's written tokens cost with the best number of drafts.

    Attributes:
        length: That number; 0 where drafts do not pay.
        chance: That a draft is right.
        tokens: A pass.
        rounds: A written token.
        mean_s: A written token, drafting included.
    """

    length: int
    chance: float
    tokens: float
    rounds: float
    mean_s: float


def draft_bill(world: World, node: int, demand: DraftDemand, holders: Holders) -> DraftBill:
    """Judge a placement by what a node's tokens cost with drafts, or without where that is better."""
    plain = bill(world, node, world.traces[node].decode, holders)
    chance = acceptance(plain.hit)
    found = [DraftBill(0, chance, 1.0, plain.rounds, plain.mean_s)]
    for length, steps in demand.passes.items():
        tokens, of_pass = tokens_per_pass(chance, length), bill(world, node, steps, holders)
        pass_s = of_pass.mean_s * (length + 1) + length * demand.draft_s
        found.append(DraftBill(length, chance, tokens, of_pass.rounds / tokens, pass_s / tokens))
    return min(found, key=lambda one: one.mean_s)


def drafting_world(world: World, demands: Sequence[DraftDemand], holders: Holders) -> World:
    """The world as a policy should see it that places for drafts.

    Args:
        world: As it is without drafts.
        demands: Of each node.
        holders: A placement near which drafts are judged.

    Returns:
        The same with passes for decode steps, as often as the tokens ask for, and with what a call sent away costs
        in tokens a pass added to its bytes' time.
    """
    traces, byte_s = list(world.traces), world.byte_s.copy()
    for node, demand in enumerate(demands):
        best = draft_bill(world, node, demand, holders)
        if not best.length:
            continue
        trace = world.traces[node]
        steps = demand.passes[best.length]
        passes = steps.scaled(trace.decode.tokens_per_s / best.tokens / steps.rates.sum())
        slope = sum(depth * best.chance ** (depth - 1) for depth in range(1, best.length + 1))
        saved_s = best.mean_s * slope * LOSS * passes.rates.sum()  # a second, if all calls were at home instead of none
        rows = [float(kind.rates @ kind.rows.sum(axis=(1, 2))) for kind in (passes, trace.prefill) if len(kind)]
        # Bytes are priced alike in both kinds of steps. What is at home for one is for the other, too, so the worth is
        # divided among the rows of both.
        byte_s[node] += saved_s / sum(rows) / (2 * world.shape.row_bytes)
        byte_s[node, node] = world.byte_s[node, node]
        traces[node] = replace(trace, decode=passes)
    return replace(world, traces=tuple(traces), byte_s=np.asarray(byte_s))
