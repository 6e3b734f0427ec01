"""A node's byte budget: what may be sent now."""

from __future__ import annotations


class Budget:
    """A token bucket that may be overdrawn: what must go at once goes, and the rest waits until the debt is paid."""

    __slots__ = ("_at_s", "_burst_s", "_rate", "_tokens", "sent_bytes")

    def __init__(self, bytes_per_s: float, burst_s: float, now: float) -> None:
        self._rate = bytes_per_s
        self._burst_s = burst_s
        self._tokens = bytes_per_s * burst_s
        self._at_s = now
        self.sent_bytes = 0
        """All that was ever spent."""

    def set_rate(self, bytes_per_s: float, now: float) -> None:
        """Change the rate from now on."""
        self.available(now)
        self._rate = bytes_per_s

    def available(self, now: float) -> float:
        """Bytes that may be sent; negative while in debt."""
        self._tokens = min(self._rate * self._burst_s, self._tokens + (now - self._at_s) * self._rate)
        self._at_s = now
        return self._tokens

    def spend(self, size_bytes: int, now: float) -> None:
        """Count bytes as sent."""
        self.available(now)
        self._tokens -= size_bytes
        self.sent_bytes += size_bytes
