"""What a policy is, and what several of them need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meshmoe.placement.trace import Floats, Ints
from meshmoe.placement.world import Holders, ModelShape, World


class Policy(Protocol):
    """Decides who holds what."""

    @property
    def name(self) -> str:
        """As tables print it."""

    def place(self, world: World) -> Holders:
        """A placement that passes `World.check`.

        Raises:
            ValueError: The nodes cannot hold the model together.
        """


def demands(world: World) -> Floats:
    """Every node's calls to every expert: ``[nodes, layers, experts]`` rows a second."""
    return np.stack([trace.demand(world.shape.experts) for trace in world.traces])


def no_holders(world: World) -> Holders:
    """The empty placement."""
    return np.zeros((len(world.nodes), world.shape.layers, world.shape.experts), bool)


def layer_bytes(shape: ModelShape) -> Ints:
    """Size of one expert of each layer: ``[layers]``.

    Raises:
        ValueError: Experts of a layer differ in size; the published policies count slots, so they cannot place those.
    """
    sizes: Ints = shape.expert_bytes.max(axis=1)
    if ((shape.expert_bytes != sizes[:, None]) & shape.exists).any():
        raise ValueError("experts of one layer differ in size")
    return sizes


def spread_slots(world: World, room_bytes: Ints) -> Ints:
    """Share each node's room over the layers, so that all layers get the same relative number of slots.

    The published policies give every layer as many physical experts as every other. Here capacities are arbitrary, so
    slot after slot goes to the layer that has least for its experts, and there to the node with the smallest share of
    it by its capacity. A node needs no more slots in a layer than the layer has experts.

    Args:
        world: For sizes.
        room_bytes: ``[nodes]``.

    Returns:
        ``[nodes, layers]``.
    """
    sizes, count = layer_bytes(world.shape), world.shape.exists.sum(axis=1)
    slots = np.zeros((len(world.nodes), world.shape.layers), np.int64)
    room = room_bytes.astype(np.int64).copy()
    open_layers = set(range(world.shape.layers))
    while open_layers:
        layer = min(open_layers, key=lambda i: (slots[:, i].sum() / count[i], i))
        able = np.flatnonzero((room >= sizes[layer]) & (slots[:, layer] < count[layer]))
        if not len(able):
            open_layers.discard(layer)
            continue
        # Within a layer, shares follow capacities.
        node = min(able.tolist(), key=lambda n: ((slots[n, layer] + 1) / room_bytes[n], -room[n], n))
        slots[node, layer] += 1
        room[node] -= sizes[layer]
    return slots


def balance(world: World, spread: Callable[[Floats, Ints, NDArray[np.bool_]], None]) -> Holders:
    """Place layer by layer with an eye on load alone, as EPLB and SmartMoE do, and repair coverage.

    Args:
        world: Whose nodes get slots by `spread_slots`.
        spread: Fills a layer's ``[nodes, experts]``; is told each expert's load, the sum over all nodes (who asks is
            not looked at), and each node's slots.

    Raises:
        ValueError: There is no way to cover an expert.
    """
    holders, demand = no_holders(world), demands(world)
    slots = spread_slots(world, world.capacity_bytes)
    load = demand.sum(axis=0) + 1e-12
    for layer in range(world.shape.layers):
        count = int(world.shape.exists[layer].sum())
        spread(load[layer, :count], slots[:, layer], holders[:, layer, :count])
    return cover(world, holders, demand)


def cover(world: World, holders: Holders, demand: Floats) -> Holders:
    """Repair coverage: an expert without a holder goes where it is called most and something can make room for it.

    Room is made by dropping the copies that their node calls least, of experts that others hold too.

    Raises:
        ValueError: There is no way to cover an expert.
    """
    holders = holders.copy()
    shape = world.shape
    room = world.capacity_bytes - np.tensordot(holders, shape.expert_bytes, axes=([1, 2], [0, 1]))
    missing = np.argwhere(shape.exists & ~holders.any(axis=0))
    for layer, expert in missing[np.argsort(-shape.expert_bytes[missing[:, 0], missing[:, 1]], kind="stable")]:
        size = shape.expert_bytes[layer, expert]
        for node in np.argsort(-demand[:, layer, expert], kind="stable"):
            spare = np.argwhere(holders[node] & (holders.sum(axis=0) > 1))
            spare = spare[np.argsort(demand[node][tuple(spare.T)], kind="stable")]
            freed = np.cumsum(shape.expert_bytes[tuple(spare.T)])
            drops = 0 if room[node] >= size else int(np.searchsorted(freed, size - room[node])) + 1
            if drops <= len(spare):
                holders[node][tuple(spare[:drops].T)] = False
                room[node] += (freed[drops - 1] if drops else 0) - size
                holders[node, layer, expert] = True
                break
        else:
            raise ValueError("the nodes cannot hold the model together")
    return holders


def pack(loads: Floats, room: Ints, allowed: NDArray[np.bool_] | None = None) -> list[list[int]]:
    """Balanced packing: heaviest item first, each into the least loaded box that has room, relative to its room.

    EPLB's ``balanced_packing`` and SmartMoE's greedy balance with boxes of equal room; with unequal ones (our
    adaptation) a box's load is measured by its room, so that a box twice as large takes twice the load.

    Args:
        loads: ``[items]``.
        room: ``[boxes]``, items that each may take.
        allowed: ``[items, boxes]``; updated so that equal items (see EPLB) keep apart is the caller's business.

    Returns:
        For each box its items; an item that found no box is in none.
    """
    taken: list[list[int]] = [[] for _ in room]
    load = np.zeros(len(room))
    for item in np.argsort(-loads, kind="stable"):
        able = [b for b in range(len(room)) if len(taken[b]) < room[b] and (allowed is None or allowed[item, b])]
        if able:
            box = min(able, key=lambda b: (float(load[b] / room[b]), b))
            taken[box].append(int(item))
            load[box] += loads[item]
    return taken
