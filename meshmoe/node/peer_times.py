"""How long each peer takes to answer a decode call, and whom not to trust for a while.

A fixed deadline is either too long for a LAN or too short for a busy box. TCP's answer to the same question serves
here: a smoothed mean and deviation of what was measured, and a deadline well beyond them (Jacobson 1988; RFC 6298, with
the gains of section 2). A peer that misses its deadline is passed over where another one has the expert, for a time
that doubles with every miss: until membership has made up its mind, every layer of every token would run into it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from meshmoe.core.ids import NodeId

DEADLINE_S_MIN = 0.3
"""A healthy box may pause so long: garbage collection, a prompt's chunk before the call, a scheduler's slice."""

LATE_S_MIN = 0.002
"""Nothing is late earlier: timers and scheduling alone may take as long."""

DISTRUST_S_MIN = 1.0
DISTRUST_S_MAX = 8.0


@dataclass(slots=True)
class _Times:
    mean_s: float
    deviation_s: float
    misses: int = 0
    distrusted_until_s: float = 0.0


class PeerTimes:
    """One entry for each peer ever asked; peers are those of membership, so it is bounded as they are."""

    def __init__(self) -> None:
        self._times: dict[NodeId, _Times] = {}

    def answered(self, peer: NodeId, took_s: float) -> None:
        """A decode call was answered."""
        times = self._times.get(peer)
        if times is None:
            self._times[peer] = _Times(took_s, took_s / 2)
            return
        times.deviation_s += 0.25 * (abs(took_s - times.mean_s) - times.deviation_s)
        times.mean_s += 0.125 * (took_s - times.mean_s)
        times.misses = 0
        times.distrusted_until_s = 0.0

    def missed(self, peer: NodeId, now_s: float) -> None:
        """A deadline has passed without an answer."""
        times = self._times.setdefault(peer, _Times(DEADLINE_S_MIN, DEADLINE_S_MIN / 2))
        if now_s < times.distrusted_until_s:
            return  # several calls were out at once: one miss
        times.distrusted_until_s = now_s + min(DISTRUST_S_MAX, DISTRUST_S_MIN * 2**times.misses)
        times.misses += 1

    def distrusted(self, peer: NodeId, now_s: float) -> bool:
        """Whether to pass over a peer where another one can do it."""
        times = self._times.get(peer)
        return times is not None and now_s < times.distrusted_until_s

    def deadline_s(self, peer: NodeId, longest_s: float) -> float:
        """How long to wait for a decode call where another peer could be asked instead.

        Args:
            peer: Who is asked.
            longest_s: Never more than this; also where nothing was measured yet.
        """
        times = self._times.get(peer)
        if times is None:
            return longest_s
        return min(longest_s, max(DEADLINE_S_MIN, 2 * (times.mean_s + 4 * times.deviation_s)))

    def usual_s(self, peer: NodeId) -> float:
        """When most answers have come; infinite where nothing was measured yet."""
        times = self._times.get(peer)
        return math.inf if times is None else times.mean_s + times.deviation_s

    def late_s(self, peer: NodeId) -> float | None:
        """When an answer is later than nearly all before it; None where nothing was measured yet.

        Mean and twice the mean deviation: of exponentially distributed times 90 % are earlier, of normally distributed
        ones 94 %.
        """
        times = self._times.get(peer)
        return None if times is None else max(LATE_S_MIN, times.mean_s + 2 * times.deviation_s)
