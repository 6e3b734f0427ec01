"""The integer program agrees with the cost function and with trying everything."""

import itertools

import numpy as np
import pytest

from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.policies import Negotiated
from meshmoe.placement.policies.optimum import solve
from tests.placement.worlds import small_world


def even(world):
    """The world with all nodes as fast as the first."""
    specs = tuple(type(s)(s.capacity_bytes, 1e-4, 0.0, 1e-5, 1e-6) for s in world.specs)
    return type(world)(world.shape, world.nodes, specs, world.traces, world.rtt_s, world.byte_s, world.near)


def test_its_cost_is_the_mesh_cost_and_nothing_is_cheaper():
    world = even(small_world(2, nodes=2, layers=2, experts=4, redundancy=1.25, tokens=20, prefill=True))
    found = solve(world)
    world.check(found.holders)
    assert found.cost == pytest.approx(mesh_cost(world, found.holders), rel=1e-6)
    assert found.bound == pytest.approx(found.cost, rel=1e-3)
    best = np.inf
    for row in itertools.product((1, 2, 3), repeat=8):  # who holds each expert: one, the other, both
        holders = np.array([[(v & 1) > 0 for v in row], [(v & 2) > 0 for v in row]]).reshape(2, 2, 4)
        if (holders.sum(axis=(1, 2)) <= 5).all():
            best = min(best, mesh_cost(world, holders))
    assert found.cost == pytest.approx(best, rel=1e-6)


def test_the_relaxation_bounds_from_below():
    world = even(small_world(3, nodes=2, layers=2, experts=6, tokens=40))
    found, bound = solve(world), solve(world, relax=True)
    assert bound.holders is None
    assert bound.bound <= found.cost * (1 + 1e-9)


def test_negotiation_comes_near_it():
    ratios = []
    for seed in range(6):
        world = even(small_world(seed, nodes=3, layers=3, experts=6, redundancy=1.34, tokens=40))
        ratios.append(mesh_cost(world, Negotiated().place(world)) / solve(world).cost)
    assert min(ratios) > 1 - 1e-6
    assert np.mean(ratios) < 1.03, ratios


@pytest.mark.parametrize("prefill", [False, True])
def test_on_unequal_links_and_speeds_nothing_is_cheaper_either(prefill):
    links = [(0, 1, 1.0), (1, 2, 1.0), (0, 2, 2.1)]  # past node 1 it is nearer, but takes more for bytes
    world = small_world(4, nodes=3, layers=1, experts=4, redundancy=1.5, tokens=20, prefill=prefill, links=links)
    found = solve(world)
    world.check(found.holders)
    assert found.cost == pytest.approx(mesh_cost(world, found.holders), rel=1e-6)
    best = np.inf
    for row in itertools.product(range(1, 8), repeat=4):  # which of the three hold each expert
        holders = np.array([[bool(v >> node & 1) for v in row] for node in range(3)])[:, None]
        if (holders.sum(axis=(1, 2)) <= 2).all():
            best = min(best, mesh_cost(world, holders))
    assert found.cost == pytest.approx(best, rel=1e-6)
