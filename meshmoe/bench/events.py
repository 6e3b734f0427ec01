"""An event simulation of requests on a mesh: what queues add to the cost that placement is decided on.

A request is a prompt, read as one chunk, and then tokens, one after the other; each goes through all layers. In a
layer the caller's device computes the trunk, then hidden states go to the holders of what is missing while the device
computes its own experts; the layer ends when the last reply is in. Each device, and each node's sending side, serves
one thing at a time, in the order of arrival. Of several holders one that serves the layer already is taken, then the
one whose device is free first.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from meshmoe.placement.trace import Floats
from meshmoe.placement.world import Holders, World


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        node: Where it arrives.
        arrival_s: When.
        steps: ``[layers, experts]`` rows for each expert, the prompt's chunk first, then one for each token.
        tokens: Of each step.
    """

    node: int
    arrival_s: float
    steps: Sequence[NDArray[np.int32]]
    tokens: Sequence[int]


@dataclass
class _Running:
    """A request under way."""

    request: Request
    step: int = 0
    layer: int = 0
    open_parts: int = 0


@dataclass
class Latencies:
    """Results, in the order in which requests ended.

    Attributes:
        total_s: From arrival to the last token.
        first_s: From arrival to the end of the prompt.
    """

    total_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)


class Simulation:
    """One run."""

    def __init__(self, world: World, holders: Holders, trunk_s: float, trunk_row_s: float) -> None:
        """Set the mesh up.

        Args:
            world: Speeds and links.
            holders: A placement.
            trunk_s, trunk_row_s: A layer's trunk for one row, and for each further one.
        """
        world.check(holders)
        self._world, self._holders = world, holders
        self._trunk_s, self._trunk_row_s = trunk_s, trunk_row_s
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = itertools.count()
        nodes = len(world.nodes)
        self._device_s, self._up_s = [0.0] * nodes, [0.0] * nodes
        self.latencies = Latencies()

    def run(self, requests: Sequence[Request]) -> Latencies:
        """Serve all requests."""
        for request in requests:
            running = _Running(request)
            self._at(request.arrival_s, partial(self._layer, running))
        while self._events:
            now, _, action = heapq.heappop(self._events)
            action(now)
        return self.latencies

    def _at(self, when_s: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._number), action))

    @staticmethod
    def _serve(free_s: list[float], node: int, now: float, work_s: float) -> float:
        """When work that arrives now at a server is done."""
        free_s[node] = max(now, free_s[node]) + work_s
        return free_s[node]

    def _layer(self, running: _Running, now: float) -> None:
        rows = running.request.tokens[running.step]
        done_s = self._serve(self._device_s, running.request.node, now, self._trunk_s + (rows - 1) * self._trunk_row_s)
        self._at(done_s, lambda then: self._experts(running, then))

    def _experts(self, running: _Running, now: float) -> None:
        node, layer = running.request.node, running.layer
        counts = running.request.steps[running.step][layer]
        here = (counts > 0) & self._holders[node, layer]
        parts = self._branches(node, layer, np.flatnonzero((counts > 0) & ~here))
        running.open_parts = 1 + len(parts)
        row_bytes, spec = self._world.shape.row_bytes, self._world.specs
        for peer, experts in parts.items():
            rows = int(counts[experts].sum())
            wire_s = rows * row_bytes * float(self._world.byte_s[node, peer])
            work_s = spec[peer].call_s + len(experts) * spec[peer].expert_s + rows * spec[peer].row_s
            half_s = float(self._world.rtt_s[node, peer]) / 2
            sent_s = self._serve(self._up_s, node, now, wire_s)
            self._at(sent_s + half_s, self._remote(running, peer, work_s, wire_s, half_s))
        own_s = int(here.sum()) * spec[node].expert_s + int(counts[here].sum()) * spec[node].row_s
        self._at(self._serve(self._device_s, node, now, own_s), lambda then: self._part(running, then))

    def _branches(self, node: int, layer: int, missing: NDArray[np.intp]) -> dict[int, list[int]]:
        parts: dict[int, list[int]] = {}
        for expert in missing.tolist():
            able = [int(n) for n in np.flatnonzero(self._holders[:, layer, expert]) if n != node]
            peer = min(able, key=lambda n: (n not in parts, self._device_s[n], n))
            parts.setdefault(peer, []).append(expert)
        return parts

    def _remote(
        self, running: _Running, peer: int, work_s: float, wire_s: float, half_s: float
    ) -> Callable[[float], None]:
        def computed(now: float) -> None:
            sent_s = self._serve(self._up_s, peer, now, wire_s)
            self._at(sent_s + half_s, lambda then: self._part(running, then))

        return lambda now: self._at(self._serve(self._device_s, peer, now, work_s), computed)

    def _part(self, running: _Running, now: float) -> None:
        running.open_parts -= 1
        if running.open_parts:
            return
        running.layer += 1
        if running.layer == self._world.shape.layers:
            running.layer = 0
            running.step += 1
            if running.step == 1:
                self.latencies.first_s.append(now - running.request.arrival_s)
        if running.step < len(running.request.steps):
            self._layer(running, now)
        else:
            self.latencies.total_s.append(now - running.request.arrival_s)


def poisson_arrivals(rng: np.random.Generator, mean_s: float, count: int) -> Floats:
    """Times of so many arrivals with this mean distance."""
    times: Floats = np.cumsum(rng.exponential(mean_s, count))
    return times
