"""Sets are priced as the cost says, families are nested, and the knapsack is optimal over them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.placement.cost import branches, node_cost
from meshmoe.placement.pricing import Pricer, fill, knapsack
from meshmoe.placement.table import tabulate
from tests.placement.worlds import SIZE, small_world


def all_elsewhere(world):
    holders = np.zeros((len(world.nodes), world.shape.layers, world.shape.experts), bool)
    holders[1] = True
    return holders


def pricer_of(world, holders, node=0):
    table = tabulate(world.shape, world.specs[node], world.traces[node])
    return Pricer(world.shape, table, branches(world, node, holders))


def test_prices_of_layers_add_up_to_the_nodes_cost():
    world = small_world(prefill=True)
    holders = all_elsewhere(world)
    holders[0, :, ::2] = True
    pricer = pricer_of(world, holders)
    total = sum(pricer.cost(layer, holders[0, layer]) for layer in range(4))
    assert total == pytest.approx(node_cost(world, 0, holders))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_elimination_removes_what_costs_least_and_its_costs_are_those_of_the_sets(seed, bits):
    world = small_world(seed, tokens=50, prefill=True)
    pricer = pricer_of(world, all_elsewhere(world))
    held = np.array([bool(bits >> i & 1) for i in range(8)])
    order, costs = pricer.eliminate(0, held, np.zeros(8, bool))
    assert costs[0] == pytest.approx(pricer.cost(0, held))
    for expert, cost in zip(order, costs[1:], strict=True):
        without = np.repeat(held[None], held.sum(), axis=0)
        without[np.arange(held.sum()), held.nonzero()[0]] = False
        held[expert] = False
        assert pricer.cost(0, held) == pytest.approx(cost, abs=1e-12)
        assert cost <= pricer.cost(0, without).min() + 1e-12


def test_equal_steps_are_one_and_their_rates_add_up():
    world = small_world(tokens=400)
    table = tabulate(world.shape, world.specs[0], world.traces[0])
    decode = world.traces[0].decode
    different = [{tuple(sorted(step)) for step in decode.experts[:, layer].tolist()} for layer in range(4)]
    assert np.diff(table.first_step).tolist() == [len(sets) for sets in different]
    assert table.rates.sum() == pytest.approx(4 * decode.rates.sum())


def test_elimination_goes_from_everything_to_what_must_stay():
    world = small_world()
    pricer = pricer_of(world, all_elsewhere(world))
    keep = np.zeros(8, bool)
    keep[[2, 5]] = True
    order, costs = pricer.eliminate(1, np.ones(8, bool), keep)
    assert sorted([*order.tolist(), 2, 5]) == list(range(8))
    assert costs[0] == pytest.approx(pricer.cost(1, np.ones(8, bool)))
    assert costs[-1] == pytest.approx(pricer.cost(1, keep))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(0, 12),
)
def test_the_knapsack_is_exact_for_equal_sizes(costs, room):
    found = knapsack([np.array(c) for c in costs], np.ones(len(costs), np.int64), room)
    assert sum(found) <= room
    best = min(
        sum(c[i] for c, i in zip(costs, counts, strict=True))
        for counts in itertools.product(*(range(len(c)) for c in costs))
        if sum(counts) <= room
    )
    assert sum(c[i] for c, i in zip(costs, found, strict=True)) == pytest.approx(best)


def test_the_knapsack_keeps_unequal_sizes_within_the_room():
    costs = [np.array([9.0, 5.0, 4.0]), np.array([8.0, 1.0])]
    assert knapsack(costs, np.array([3, 7]), 9) == [0, 1]
    assert knapsack(costs, np.array([3, 7]), 6) == [2, 0]
    assert knapsack(costs, np.array([3, 7]), 13) == [2, 1]


def test_a_node_concentrates_on_whole_layers_when_memory_is_scarce():
    """With room for one layer of four, half of the room in each of two layers is worth much less than one whole."""
    world = small_world(5, top_k=4, tokens=400, evenness=1e6)
    pricer = pricer_of(world, all_elsewhere(world))
    held = fill(pricer, np.zeros((4, 8), bool), 9 * SIZE)
    assert held.sum() <= 9
    assert held.sum(axis=1).max() >= 7
    everything = fill(pricer, np.zeros((4, 8), bool), 32 * SIZE)
    assert sum(pricer.cost(i, everything[i]) for i in range(4)) == pytest.approx(
        sum(pricer.cost(i, np.ones(8, bool)) for i in range(4))
    )


def test_what_must_be_held_stays():
    world = small_world()
    keep = np.zeros((4, 8), bool)
    keep[3, 7] = keep[0, 0] = True
    held = fill(pricer_of(world, all_elsewhere(world)), keep, 4 * SIZE)
    assert held[3, 7] and held[0, 0] and held.sum() <= 6
