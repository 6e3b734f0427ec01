"""Waiting awake: whether the compute thread keeps looking for what is due soon, or sleeps until it comes.

A thread that sleeps for a millisecond is woken up late, and then runs with cold caches on a core that has to speed up
first. So where this box has cores to spare, the thread looks on without a pause while an answer or a peer's next call
is due within milliseconds. Longer it sleeps: a link of 20 ms would cost much processor time for little.

Whether cores are to spare is what the kernel says of the last half second: one and a half must have been idle before
the thread begins to wait awake, and half a one must stay idle while it does.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil

SOON_S = 0.005
"""What is due later is slept for."""

LOOK_EVERY_S = 0.5
IDLE_CORES_TO_BEGIN = 1.5
IDLE_CORES_TO_GO_ON = 0.5


def idle_s() -> float:
    """Seconds that the cores of this box have been idle, all together."""
    return float(psutil.cpu_times().idle)


class Vigil:
    """See the module; belongs to the compute thread."""

    def __init__(self, enabled: bool = True, idle_s: Callable[[], float] = idle_s) -> None:
        """Nothing is due yet.

        Args:
            enabled: Whether to wait awake at all.
            idle_s: Tells for how long cores were idle.
        """
        self._enabled = enabled
        self._idle_s = idle_s
        self._until_s = 0.0
        self._looked_s = self._idle_then_s = 0.0
        self._spare = False

    def expect(self, now_s: float, within_s: float) -> None:
        """Something is due within so many seconds."""
        if within_s <= SOON_S:
            self._until_s = max(self._until_s, now_s + within_s)

    def awake_s(self, now_s: float) -> float:
        """For how long to wait awake now; 0 for not at all."""
        left_s = self._until_s - now_s
        return left_s if left_s > 0 and self.spare(now_s) else 0.0

    def spare(self, now_s: float) -> bool:
        """Whether to wait awake at all now, because there are cores to spare."""
        if self._enabled and now_s - self._looked_s >= LOOK_EVERY_S:
            self._look(now_s)
        return self._enabled and self._spare

    def _look(self, now_s: float) -> None:
        idle_s, took_s = self._idle_s(), now_s - self._looked_s
        if took_s < 2 * LOOK_EVERY_S:  # else that was long ago
            least = IDLE_CORES_TO_GO_ON if self._spare else IDLE_CORES_TO_BEGIN
            self._spare = (idle_s - self._idle_then_s) / took_s >= least
        self._looked_s, self._idle_then_s = now_s, idle_s
