"""Whole routing sets of this node's own requests, on their way from the compute thread to whoever keeps its demand.

Counts an expert (`meshmoe.engine.counts`) cannot say whether a layer waits; sets can. The log is bounded and forgets
the oldest: nobody has to take them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOKENS_MAX = 8192
"""Tokens kept until they are taken: 6 MB for 48 layers of top-8."""


class Routed(NamedTuple):
    """One forward pass of one or several requests.

    Attributes:
        at_s: ``time.monotonic()`` when it was computed.
        decode: Whether each token is a step of its own; else all together are one chunk of a prompt.
        sets: ``[tokens, MoE layers, k]`` int16; -1 where a token called no expert of the mesh.
    """

    at_s: float
    decode: bool
    sets: NDArray[np.int16]


class RoutingLog:
    """Written by the compute thread, taken by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passes: deque[Routed] = deque()
        self._tokens = 0

    def add(self, sets: NDArray[np.integer], *, decode: bool) -> None:
        """Note a pass; ``sets`` is ``[tokens, MoE layers, k]`` and is copied."""
        routed = Routed(time.monotonic(), decode, sets.astype(np.int16))
        with self._lock:
            self._passes.append(routed)
            self._tokens += len(sets)
            while self._tokens > TOKENS_MAX and len(self._passes) > 1:
                self._tokens -= len(self._passes.popleft().sets)

    def add_layers(self, layers: Sequence[NDArray[np.integer] | None], *, decode: bool) -> None:
        """Note a pass from its layers, ``[tokens, k]`` each; an unfinished one is left out."""
        parts = [part for part in layers if part is not None]
        if len(parts) < len(layers) or len({len(part) for part in parts}) != 1:
            return
        sets = np.full((len(parts[0]), len(parts), max(part.shape[1] for part in parts)), -1, np.int16)
        for layer, part in enumerate(parts):
            sets[:, layer, : part.shape[1]] = part
        self.add(sets, decode=decode)

    def take(self) -> list[Routed]:
        """What has come since the last call, oldest first."""
        with self._lock:
            passes, self._passes, self._tokens = list(self._passes), deque(), 0
        return passes
