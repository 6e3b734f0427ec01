"""What a placement costs, in seconds: the one measure that every decision and every comparison uses.

A layer of a step takes::

    max(local compute, slowest remote branch) + bytes / bandwidth

Remote calls leave first and local experts are computed meanwhile, hence the maximum; a branch is round trip, overhead
and queue, and compute at the holder. Bytes are added up over branches, because they share the caller's own link; they
count a row out and a row back for every call of an expert (a node that calls one peer for two experts of a token sends
the token once, so this is a little more than it pays). Each expert goes to its fastest holder. Attention and whatever
else does not depend on the placement is left out.

Layers do not influence each other, so a step's cost is the sum over its layers. Everything else here follows from that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meshmoe.placement.trace import Floats, Steps
from meshmoe.placement.world import Holders, NodeSpec, World

NOBODY_S = 1e3
"""For an expert without a holder: worse than anything real."""


class Branches(NamedTuple):
    """What it takes a node to have an expert computed elsewhere, ``[layers, experts]`` each.

    An expert that nobody else holds takes `NOBODY_S`, so that no sum ever becomes infinite.

    Attributes:
        call_s: Everything but the bytes, for one row.
        byte_s: Seconds a byte, in one direction.
        row_s: Compute for each further row.
    """

    call_s: Floats
    byte_s: Floats
    row_s: Floats

    def layer(self, layer: int) -> Branches:
        """Of one layer: ``[experts]``."""
        return Branches(*(values[layer] for values in self))


def branches(world: World, node: int, holders: Holders) -> Branches:
    """Every expert's fastest holder other than the node itself, for a call of one row."""
    call_s, byte_s = world.call_s(1.0)[node], world.byte_s[node]
    time_s = call_s + 2 * world.shape.row_bytes * byte_s
    others = holders.copy()
    others[node] = False
    best = np.where(others, time_s[:, None, None], np.inf).argmin(axis=0)
    held = others.any(axis=0)
    row_s = np.array([spec.row_s for spec in world.specs])
    return Branches(np.where(held, call_s[best], NOBODY_S), byte_s[best], row_s[best])


class LayerSteps(NamedTuple):
    """One layer of many steps, priced.

    A slot that is not used has the number of experts as its expert, which every set holds and which costs nothing.

    Attributes:
        slots: ``[steps, slots]`` expert of each slot.
        local_s, remote_s, wire_s: ``[steps, slots]``: compute at home; the branch elsewhere; the bytes' time.
        rates: ``[steps]``.
    """

    slots: NDArray[np.intp]
    local_s: Floats
    remote_s: Floats
    wire_s: Floats
    rates: Floats

    def seconds(self, held: NDArray[np.bool_]) -> Floats:
        """Seconds of each step: ``[..., steps]`` for ``held`` of shape ``[..., experts + 1]``, the last one true."""
        here = held[..., self.slots]
        waits = np.where(here, 0.0, self.remote_s).max(axis=-1)
        computes = np.where(here, self.local_s, 0.0).sum(axis=-1)
        total: Floats = np.maximum(waits, computes) + np.where(here, 0.0, self.wire_s).sum(axis=-1)
        return total

    def rate_cost(self, held: NDArray[np.bool_]) -> Floats:
        """Seconds spent a second: ``[...]``."""
        total: Floats = self.seconds(held) @ self.rates
        return total


def layer_steps(spec: NodeSpec, row_bytes: int, steps: Steps, layer: int, branch: Branches) -> LayerSteps:
    """Price one layer of a node's steps.

    Args:
        spec: The node's own means.
        row_bytes: Of a hidden state.
        steps: Of one kind.
        layer: Which one.
        branch: Of that layer.
    """
    experts = len(branch.call_s)
    rows = steps.rows[:, layer].astype(np.float64)
    used = rows > 0
    slots = np.where(used, steps.experts[:, layer], experts).astype(np.intp)
    pad = [np.append(values, 0.0) for values in branch]
    remote_s = np.where(used, pad[0][slots] + (rows - 1) * pad[2][slots], 0.0)
    wire_s = 2 * row_bytes * rows * pad[1][slots]
    local_s = np.where(used, spec.expert_s + rows * spec.row_s, 0.0)
    return LayerSteps(slots, local_s, remote_s, wire_s, steps.rates)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a node's steps of one kind cost under a placement; all means are over tokens.

    Attributes:
        rounds: Layers a step that wait for another node.
        hit: Share of expert calls (rows) served at home.
        wire_bytes: A token.
        mean_s: A token.
        p99_s: Of the steps.
        tokens_per_s: How much of this the node does.
    """

    rounds: float
    hit: float
    wire_bytes: float
    mean_s: float
    p99_s: float
    tokens_per_s: float


def bill(world: World, node: int, steps: Steps, holders: Holders) -> Bill:
    """Judge a placement by a node's steps of one kind.

    Args:
        world: Sizes, speeds, links.
        node: Whose steps they are.
        steps: Its decode or its prefill, of which there must be some.
        holders: Who holds what.
    """
    branch = branches(world, node, holders)
    own = np.append(holders[node], np.ones((world.shape.layers, 1), bool), axis=1)
    step_s, waits = np.zeros(len(steps)), np.zeros(len(steps))
    missing, calls = np.zeros(len(steps)), np.zeros(len(steps))
    for layer in range(world.shape.layers):
        priced = layer_steps(world.specs[node], world.shape.row_bytes, steps, layer, branch.layer(layer))
        step_s += priced.seconds(own[layer])
        here = own[layer][priced.slots]
        waits += (~here).any(axis=1)
        missing += np.where(here, 0, steps.rows[:, layer]).sum(axis=1)
        calls += steps.rows[:, layer].sum(axis=1)
    tokens_per_s = steps.tokens_per_s
    order = np.argsort(step_s)
    share = np.cumsum(steps.rates[order]) / steps.rates.sum()
    return Bill(
        rounds=float(steps.rates @ waits / steps.rates.sum()),
        hit=1.0 - float(steps.rates @ missing / (steps.rates @ calls)),
        wire_bytes=float(steps.rates @ missing) * 2 * world.shape.row_bytes / tokens_per_s,
        mean_s=float(steps.rates @ step_s) / tokens_per_s,
        p99_s=float(step_s[order][np.searchsorted(share, 0.99 - 1e-12)]),
        tokens_per_s=tokens_per_s,
    )


def node_cost(world: World, node: int, holders: Holders) -> float:
    """Seconds that a node spends a second in waiting for experts and computing them: its part of what is minimised."""
    branch = branches(world, node, holders)
    own = np.append(holders[node], np.ones((world.shape.layers, 1), bool), axis=1)
    trace = world.traces[node]
    return float(
        sum(
            layer_steps(world.specs[node], world.shape.row_bytes, steps, layer, branch.layer(layer)).rate_cost(
                own[layer]
            )
            for steps in (trace.decode, trace.prefill)
            for layer in range(world.shape.layers)
            if len(steps)
        )
    )


def mesh_cost(world: World, holders: Holders) -> float:
    """The sum of all nodes' costs."""
    return sum(node_cost(world, node, holders) for node in range(len(world.nodes)))
