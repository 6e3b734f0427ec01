"""A division keeps what must be kept, fits, costs what the search says, and comes near the best there is."""

import itertools

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from meshmoe.placement.cost import branches, mesh_cost
from meshmoe.placement.joint import Seat, best_division
from meshmoe.placement.pricing import Pricer
from meshmoe.placement.seed import guardian_owners
from meshmoe.placement.table import tabulate
from tests.placement.worlds import SIZE, outlook_of, small_world


def seats_of(world, holders, room):
    """Two ends; each believes that what it does not hold is elsewhere, whoever holds it."""
    outlook = outlook_of(world, np.ones_like(holders), np.zeros(holders[0].shape, int))
    tables = [tabulate(world.shape, world.specs[i], world.traces[i]) for i in range(2)]
    return tuple(
        Seat(outlook.caller(i, (0, 1), table), holders[i], room * SIZE, np.zeros(holders[i].shape), 0.0)
        for i, table in enumerate(tables)
    )


def total(world, seats, held):
    """As the cost function says if there is a holder elsewhere of everything."""
    everything = np.ones((2, *held[0].shape), bool)
    pricers = [Pricer(world.shape, seat.caller.table, branches(world, i, everything)) for i, seat in enumerate(seats)]
    return sum(pricer.total(one) for pricer, one in zip(pricers, held, strict=True))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6))
def test_it_is_a_plan_and_never_dearer(seed, room):
    world = small_world(seed, nodes=2, tokens=60, prefill=True)
    holders = np.random.default_rng(seed).random((2, 4, 8)) < 0.5
    must = holders.any(axis=0)
    seats = seats_of(world, holders, room)
    found = best_division(seats, world.shape, must, 40, seed)
    assert ((found[0] | found[1]) >= must).all()
    for one, seat in zip(found, seats, strict=True):
        assert one.sum() <= seat.held.sum() + room
    assert total(world, seats, found) <= total(world, seats, holders) * (1 + 1e-9)


def test_it_comes_near_the_best_there_is():
    for seed in range(4):
        world = small_world(seed, nodes=2, layers=2, experts=4, tokens=40)
        holders = np.zeros((2, 2, 4), bool)
        holders[0, :, :2] = holders[1, :, 2:] = True
        seats = seats_of(world, holders, 1)
        best = np.inf
        for row in itertools.product((1, 2, 3), repeat=8):
            held = np.array([[(v & 1) > 0 for v in row], [(v & 2) > 0 for v in row]]).reshape(2, 2, 4)
            if (held.sum(axis=(1, 2)) <= 5).all():
                best = min(best, total(world, seats, held))
        found = best_division(seats, world.shape, np.ones((2, 4), bool), 200, seed)
        assert best * (1 - 1e-9) <= total(world, seats, found) <= 1.02 * best


def test_what_going_and_coming_cost_counts():
    world = small_world(0, nodes=2, tokens=60)
    holders = np.zeros((2, 4, 8), bool)
    holders[0, :2] = holders[1, 2:] = True
    seats = seats_of(world, holders, 2)
    dear = tuple(Seat(s.caller, s.held, s.room_bytes, np.ones((4, 8)), 1.0) for s in seats)
    assert (np.stack(best_division(dear, world.shape, holders.any(axis=0), 60, 0)) == holders).all()
    assert not (np.stack(best_division(seats, world.shape, holders.any(axis=0), 60, 0)) == holders).all()


def test_the_same_arguments_give_the_same_division():
    world = small_world(3, nodes=2, tokens=60)
    holders = np.zeros((2, 4, 8), bool)
    holders[0, ::2] = holders[1, 1::2] = True
    seats = seats_of(world, holders, 3)
    one, two = (np.stack(best_division(seats, world.shape, np.ones((4, 8), bool), 50, 9)) for _ in range(2))
    assert (one == two).all()
    assert (
        total(world, seats, one)
        < 0.999 * total(world, seats, holders)
        == pytest.approx(0.999 * total(world, seats, holders))
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_it_costs_all_whose_demand_is_known_less_where_links_are_unequal(seed):
    world = small_world(seed, nodes=4, links=[(0, 1, 1.0), (1, 2, 3.0), (2, 3, 2.0)], tokens=60)
    owner = guardian_owners(world.shape, world.nodes, world.capacity_bytes)
    holders = owner == np.arange(4)[:, None, None]
    tables = [tabulate(world.shape, world.specs[i], world.traces[i]) for i in range(4)]
    outlook = outlook_of(world, holders, owner)
    seats, third = [], [outlook.caller(i, (1, 2), tables[i]) for i in (0, 3)]
    for end in (1, 2):
        room = world.specs[end].capacity_bytes - int(holders[end].sum()) * SIZE
        seats.append(Seat(outlook.caller(end, (1, 2), tables[end]), holders[end], room, np.zeros(owner.shape), 0.0))
    must = (owner == 1) | (owner == 2)
    after = holders.copy()
    after[1], after[2] = best_division((seats[0], seats[1]), world.shape, must, 60, seed, third, restarts=2)
    world.check(after)
    cost, before = mesh_cost(world, after), mesh_cost(world, holders)
    assert cost <= before * (1 + 1e-9)
    alone = holders.copy()
    alone[1], alone[2] = best_division((seats[0], seats[1]), world.shape, must, 60, seed, restarts=2)
    event("cheaper than without regard to bystanders" if cost < mesh_cost(world, alone) else "not cheaper")


def test_giving_everything_out_anew_finds_what_small_steps_do_not():
    ratios = []
    for seed in range(12):
        world = small_world(seed, nodes=2, layers=2, experts=12, tokens=60, redundancy=1.1)
        holders = np.zeros((2, 2, 12), bool)
        holders[0, 0] = holders[1, 1] = True
        seats, must = seats_of(world, holders, 1), np.ones((2, 12), bool)
        once, often = (best_division(seats, world.shape, must, 60, seed, restarts=restarts) for restarts in (0, 6))
        ratios.append(total(world, seats, often) / total(world, seats, once))
    assert max(ratios) <= 1 + 1e-9
    assert min(ratios) < 0.99
