"""How many tokens to draft: as many as make the most expected tokens a second, over all requests that go together.

A token of draft is worth the chance that it is written, which falls with its depth. So drafts are added one by one, the
likeliest first, and of all these beginnings the one with the best ratio is taken: tokens expected over seconds
expected, of drafting and of the pass together (goodput, as in Liu et al. 2024, "Optimizing Speculative Decoding for
Serving Large Language Models Using Goodput"; here the times are measured, not modelled).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

GAIN_MIN = 1.08
"""Drafts must promise to be so many times as fast as none: promises of a few per cent are mostly luck of measuring."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What drafting promises to one request.

    Attributes:
        survival: The chance that the first ``d + 1`` drafts are all right, at each ``d``; as long as drafts may be.
        costs: Whether drafting takes passes of its own; looking them up takes none.
    """

    survival: Sequence[float]
    costs: bool


def choose_lengths(
    prospects: Sequence[Prospect],
    pass_s: Callable[[int], float],
    draft_s: Callable[[int], float],
    row_s: float = 0.0,
) -> list[int]:
    """Choose how many tokens to draft for each request.

    Args:
        prospects: The requests of one pass.
        pass_s: Seconds of a pass through the mesh over so many rows.
        draft_s: Seconds of a pass over so many rows with what is here.
        row_s: Seconds of a row more at the least: no more is tried than can be worth it. 0 tries all.

    Returns:
        For each request a number from 0 to the length of its survival.
    """
    if len(prospects) == 1:
        return [_alone(prospects[0], pass_s, draft_s, row_s, GAIN_MIN)[1]]
    lengths = [0] * len(prospects)
    rows = len(prospects)
    tokens, drafting_s = float(rows), 0.0
    ratio = _ratio(tokens, pass_s(rows))
    best, best_ratio = list(lengths), GAIN_MIN * ratio
    depths: list[int] = []  # rows of each drafting pass
    waiting = [(-p.survival[0], at) for at, p in enumerate(prospects) if p.survival]
    heapq.heapify(waiting)
    while waiting:
        worth, at = heapq.heappop(waiting)
        if -worth <= best_ratio * row_s and ratio <= best_ratio:
            break
        prospect, depth = prospects[at], lengths[at]
        lengths[at] += 1
        rows += 1
        tokens -= worth
        if prospect.costs:
            if depth == len(depths):
                depths.append(0)
            else:
                drafting_s -= draft_s(depths[depth])
            depths[depth] += 1
            drafting_s += draft_s(depths[depth])
        ratio = _ratio(tokens, pass_s(rows) + drafting_s)
        if ratio > best_ratio:
            best, best_ratio = list(lengths), ratio
        if lengths[at] < len(prospect.survival):
            heapq.heappush(waiting, (-prospect.survival[lengths[at]], at))
    return best


def promise(
    prospect: Prospect, pass_s: Callable[[int], float], draft_s: Callable[[int], float], row_s: float = 0.0
) -> float:
    """Tokens a second that a request alone may expect of a drafter, with as many drafts as are best.

    The arguments are those of `choose_lengths`.
    """
    return _alone(prospect, pass_s, draft_s, row_s, 1.0)[0]


def _alone(
    prospect: Prospect, pass_s: Callable[[int], float], draft_s: Callable[[int], float], row_s: float, gain_min: float
) -> tuple[float, int]:
    """Tokens a second of one request, and how many drafts promise so many."""
    tokens, drafting_s, a_draft_s = 1.0, 0.0, draft_s(1) if prospect.costs else 0.0
    ratio, length = _ratio(tokens, pass_s(1)), 0
    best = gain_min * ratio
    for depth, chance in enumerate(prospect.survival, 1):
        if chance <= best * row_s and ratio <= best:
            break
        tokens += chance
        drafting_s += a_draft_s
        ratio = _ratio(tokens, pass_s(depth + 1) + drafting_s)
        if ratio > best:
            best, length = ratio, depth
    return best, length


def _ratio(tokens: float, took_s: float) -> float:
    return tokens / max(took_s, 1e-9)
