"""How long a suspect has to refute, and how accusers shorten that time.

Lifeguard (arXiv 1707.00788, section IV-B, LHA-Suspicion): a suspicion starts with a long timeout, and each independent
accuser shortens it on a logarithmic scale, down to the least one. A node whose own links or loop are sick hears neither
the refutation nor other accusers, so its suspicions last longest: it is the last to convict anybody.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from meshmoe.core.ids import NodeId
from meshmoe.membership.config import MembershipConfig


def least_s(config: MembershipConfig, n: int) -> float:
    """The time to refute when enough accusers agree, at ``n`` members; see `MembershipConfig`."""
    return config.probe_window_s * (config.suspicion_mult + config.suspicion_log_mult * math.log10(max(1, n)))


def timeout_s(confirmations: int, wanted: int, least: float, most: float) -> float:
    """The time to refute after ``confirmations`` of the ``wanted`` accusers beyond the first.

    ``most - (most - least) * log(confirmations + 1) / log(wanted + 1)``: the first confirmations count most. When
    none can be had (``wanted`` is 0) the least time holds.
    """
    if wanted <= 0 or confirmations >= wanted:
        return least
    share = math.log(confirmations + 1) / math.log(wanted + 1)
    return max(least, most - share * (most - least))


class Suspicion:
    """The running case against one member.

    Attributes:
        started_s: When this node began to suspect.
        accusers: Who found the member silent, in the order heard, at most ``limit`` of them.
        verified: Whether this node's own probe has failed since then: without that it passes no verdict.
    """

    __slots__ = ("_limit", "accusers", "started_s", "verified")

    def __init__(self, started_s: float, accusers: Iterable[NodeId], limit: int) -> None:
        """``limit`` accusers are remembered; more cannot shorten the time."""
        self.started_s = started_s
        self.accusers: list[NodeId] = []
        self.verified = False
        self._limit = limit
        self.accuse(accusers)

    def accuse(self, accusers: Iterable[NodeId]) -> bool:
        """Add accusers; returns whether that is news worth telling others."""
        before = len(self.accusers)
        for accuser in accusers:
            if len(self.accusers) < self._limit and accuser not in self.accusers:
                self.accusers.append(accuser)
        return len(self.accusers) > before

    def deadline_s(self, config: MembershipConfig, n: int, scale: int) -> float:
        """When the time to refute is over, at ``n`` members, for a node whose own lag multiplies times by ``scale``."""
        least = least_s(config, n) * scale
        wanted = min(config.confirmations, n - 2)
        confirmations = max(0, len(self.accusers) - 1)
        return self.started_s + timeout_s(confirmations, wanted, least, least * config.suspicion_max_mult)
