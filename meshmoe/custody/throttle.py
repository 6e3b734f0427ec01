"""How fast weights may come in: a token bucket, and the rule that sets its rate from the latency of expert calls.

Migrations share links with expert calls, for which people wait. Lanes keep weights from standing in front of a call
in a queue of ours, but not in the network's; so what is requested is paced at the receiver, and the rate follows what
calls pay for it.
"""

from __future__ import annotations

RATE_MIN_BYTES_PER_S = 250_000.0
"""Weights always move at 2 Mbit/s or more: a repair must end."""

RATE_MAX_BYTES_PER_S = 1.25e9
"""10 Gbit/s: as good as unlimited."""


class TokenBucket:
    """Bytes that may be requested now. It may be overdrawn by one request, so that any size passes at last."""

    __slots__ = ("_at_s", "_burst_bytes", "_tokens_bytes", "rate_bytes_per_s")

    def __init__(self, rate_bytes_per_s: float, burst_bytes: float, now: float) -> None:
        """Start full.

        Args:
            rate_bytes_per_s: Long-run rate.
            burst_bytes: What may be saved up.
            now: Monotonic seconds.
        """
        self.rate_bytes_per_s = rate_bytes_per_s
        self._burst_bytes = burst_bytes
        self._tokens_bytes = burst_bytes
        self._at_s = now

    def set_rate(self, rate_bytes_per_s: float, now: float) -> None:
        """Change the rate from now on."""
        self._refill(now)
        self.rate_bytes_per_s = min(RATE_MAX_BYTES_PER_S, max(RATE_MIN_BYTES_PER_S, rate_bytes_per_s))

    def take(self, size_bytes: int, now: float) -> bool:
        """Take tokens for a request, if the bucket is not in debt; returns whether it was not."""
        self._refill(now)
        if self._tokens_bytes <= 0:
            return False
        self._tokens_bytes -= size_bytes
        return True

    def ready_at_s(self, now: float) -> float:
        """When `take` will next succeed."""
        self._refill(now)
        # A little after the debt is paid, so that rounding cannot leave it unpaid by a hair.
        return now if self._tokens_bytes > 0 else now + (1.0 - self._tokens_bytes) / self.rate_bytes_per_s

    def _refill(self, now: float) -> None:
        elapsed_s = max(0.0, now - self._at_s)
        self._tokens_bytes = min(self._burst_bytes, self._tokens_bytes + elapsed_s * self.rate_bytes_per_s)
        self._at_s = max(now, self._at_s)


def next_rate(
    rate_bytes_per_s: float,
    call_p99_s: float,
    call_p99_before_s: float,
    moved_bytes_per_s: float,
    fastest_bytes_per_s: float,
) -> float:
    """The rate for the next second, from what expert calls pay: additive increase, multiplicative decrease.

    Args:
        rate_bytes_per_s: Rate now.
        call_p99_s: 99th percentile of expert calls over the last second.
        call_p99_before_s: The same before weights began to move.
        moved_bytes_per_s: What really came in over the last second.
        fastest_bytes_per_s: The most that ever came in a second: about what the link carries.

    Returns:
        Half of what came in (or of the rate, if that is less) when calls take more than 1.5 times as long as before;
        5 % of the fastest second more when they take less than 1.2 times as long; else the same. AIMD shares a link
        fairly and finds its rate without a model of it (Chiu & Jain 1989); what came in is taken for the rate because a
        rate far above the link's would need seconds of halving to be felt.
    """
    if call_p99_before_s <= 0 or call_p99_s <= 0:
        return rate_bytes_per_s
    slower = call_p99_s / call_p99_before_s
    if slower > 1.5:
        felt_bytes_per_s = min(rate_bytes_per_s, moved_bytes_per_s) if moved_bytes_per_s > 0 else rate_bytes_per_s
        return max(RATE_MIN_BYTES_PER_S, felt_bytes_per_s / 2)
    if slower < 1.2:
        step_bytes_per_s = max(RATE_MIN_BYTES_PER_S, 0.05 * fastest_bytes_per_s)
        return min(RATE_MAX_BYTES_PER_S, rate_bytes_per_s + step_bytes_per_s)
    return rate_bytes_per_s
