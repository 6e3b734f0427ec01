"""The bound is below what any placement does, and met where everything is at home or nothing can be."""

import itertools

import numpy as np
import pytest

from meshmoe.placement.cost import bill
from meshmoe.placement.policies import all_policies
from meshmoe.placement.policies.fewest_rounds import fewest_rounds
from tests.placement.worlds import small_world


def rounds(world, holders):
    return np.mean([bill(world, node, trace.decode, holders).rounds for node, trace in enumerate(world.traces)])


@pytest.mark.parametrize("redundancy", [1.0, 1.5, 2.5])
def test_no_policy_has_fewer(redundancy):
    world = small_world(3, redundancy=redundancy, tokens=80, shares=[1, 1, 2])
    bound = fewest_rounds(world)
    assert all(rounds(world, policy.place(world)) >= bound - 1e-6 for policy in all_policies())


def test_with_room_for_all_there_are_none():
    assert fewest_rounds(small_world(redundancy=3.0, tokens=40)) == pytest.approx(0.0, abs=1e-6)


def test_it_is_not_far_below_the_best_of_all_placements():
    world = small_world(2, nodes=2, layers=2, experts=4, redundancy=1.25, tokens=20)
    best = np.inf
    for row in itertools.product((1, 2, 3), repeat=8):
        holders = np.array([[(v & 1) > 0 for v in row], [(v & 2) > 0 for v in row]]).reshape(2, 2, 4)
        if (holders.sum(axis=(1, 2)) <= 5).all():
            best = min(best, rounds(world, holders))
    assert 0.7 * best < fewest_rounds(world) <= best + 1e-6
