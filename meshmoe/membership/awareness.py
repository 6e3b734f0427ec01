"""Local health: how far this node may trust its own silence about others.

Lifeguard (arXiv 1707.00788, section IV-A, LHA-Probe) keeps one score: failed probes whose relays also stay silent, and
accusations that this node had to refute, raise it; answered probes lower it; it multiplies the probe interval.

Here there are two scores, because they have different consequences. The *probe* score is Lifeguard's. The *lag* score
is the lateness of the event loop: a box saturated by compute. Both slow the probes down. Only lag stretches
suspicions: what this node did not hear while it was not listening proves nothing; whereas under packet loss
everybody's probe score rises, and stretching suspicions by it would leave real deaths undetected.
"""

from __future__ import annotations

from meshmoe.membership.config import MembershipConfig


class Awareness:
    """The two scores."""

    __slots__ = ("_config", "_lag", "_lag_since_s", "_probe")

    def __init__(self, config: MembershipConfig, now: float) -> None:
        self._config = config
        self._probe = 0
        self._lag = 0
        self._lag_since_s = now

    def answered(self) -> None:
        """A probe of this node was answered."""
        self._probe = max(0, self._probe - 1)

    def failed(self, nacks_expected: int, nacks: int) -> None:
        """A probe failed. A relay's nack proves this node's links sound; each missing one counts against them."""
        self._raise_probe(nacks_expected - nacks if nacks_expected else 1)

    def accused(self) -> None:
        """This node had to refute: others miss its answers."""
        self._raise_probe(1)

    def late(self, late_s: float, now: float) -> None:
        """The loop was late by ``late_s``: the lag score is at least one point for each whole ``late_unit_s``.

        A level, not a sum, so that the same lateness may be reported twice: by the runtime and by an overdue timer.
        """
        points = min(self._config.health_max - 1, int(late_s / self._config.late_unit_s))
        if points and points >= self.lag(now):
            self._lag = points
            self._lag_since_s = now

    def lag(self, now: float) -> int:
        """The lag score, after its decay of one in ``late_decay_s``."""
        return max(0, self._lag - int((now - self._lag_since_s) / self._config.late_decay_s))

    def score(self, now: float) -> int:
        """From 0, healthy, to ``health_max - 1``."""
        return min(self._config.health_max - 1, self._probe + self.lag(now))

    def _raise_probe(self, points: int) -> None:
        self._probe = min(self._config.health_max - 1, self._probe + max(0, points))
