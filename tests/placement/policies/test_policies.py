"""Every policy gives a valid placement whatever the capacities, and does what its source says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.placement.cost import bill, mesh_cost
from meshmoe.placement.policies import (
    DanceMoE,
    GlobalEplb,
    HierarchicalEplb,
    Redundance,
    SmartMoE,
    Uniform,
    all_policies,
)
from meshmoe.placement.policies.eplb import replicate
from tests.placement.worlds import small_world


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.sampled_from([1.0, 1.2, 1.5, 2.5]),
)
def test_coverage_and_budgets_hold(seed, shares, redundancy):
    world = small_world(seed, nodes=len(shares), shares=shares, redundancy=redundancy, tokens=30)
    for policy in all_policies():
        world.check(policy.place(world))


@pytest.mark.parametrize("policy", all_policies(), ids=lambda p: p.name)
def test_too_little_room_is_an_error(policy):
    world = small_world(redundancy=0.7)
    with pytest.raises(ValueError, match="cannot hold the model"):
        policy.place(world)


def test_uniform_and_smartmoe_make_no_copies_and_redundance_fills_up():
    world = small_world(redundancy=1.5)
    assert Uniform().place(world).sum() == SmartMoE().place(world).sum() == 32
    assert Redundance().place(world).sum() == 48


def load_of(world, holders):
    """The heaviest node's load over the mean, each expert's calls shared by its holders."""
    demand = sum(trace.demand(world.shape.experts) for trace in world.traces)
    load = (holders * (demand / holders.sum(axis=0))).sum(axis=(1, 2))
    return load.max() / load.mean()


def test_smartmoe_and_eplb_balance_load_better_than_uniform():
    plain, smart, copied = [], [], []
    for seed in range(5):
        world = small_world(seed, redundancy=1.5, experts=16)
        plain.append(load_of(world, Uniform().place(world)))
        smart.append(load_of(world, SmartMoE().place(world)))
        copied.append(load_of(world, GlobalEplb().place(world)))
    assert np.mean(smart) < np.mean(plain)
    assert np.mean(copied) < np.mean(plain)


def test_eplb_copies_the_most_loaded():
    assert replicate(np.array([8.0, 4.0, 1.0, 1.0]), 7, 3).tolist() == [3, 2, 1, 1]
    assert replicate(np.array([1.0, 1.0]), 9, 3).tolist() == [3, 3]


def test_eplb_hierarchical_keeps_groups_together():
    world = small_world(nodes=2, shares=[1, 1], redundancy=1.0, experts=16)
    holders = HierarchicalEplb().place(world)
    pairs = holders.reshape(2, 4, 8, 2)
    assert (pairs[..., 0] == pairs[..., 1]).all()


def test_dancemoe_gives_more_slots_where_use_is_spread_and_takes_the_most_called():
    world = small_world(1, redundancy=2.0, experts=16, tokens=400)
    holders = DanceMoE().place(world)
    for node, trace in enumerate(world.traces):
        demand = trace.demand(16)
        share = demand / demand.sum(axis=1, keepdims=True)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)
        counts = holders[node].sum(axis=1)
        assert np.corrcoef(entropy, counts)[0, 1] > 0.5
    hits = [bill(world, n, world.traces[n].decode, holders).hit for n in range(3)]
    even = [bill(world, n, world.traces[n].decode, Uniform().place(world)).hit for n in range(3)]
    assert min(hits) > max(even)


def test_ours_is_never_dearer_on_the_trace_it_was_fitted_to():
    for seed in range(4):
        for redundancy in (1.0, 1.3, 2.0):
            world = small_world(seed, redundancy=redundancy, experts=16, top_k=3)
            costs = {policy.name: mesh_cost(world, policy.place(world)) for policy in all_policies()}
            assert costs["meshmoe"] <= min(costs.values()) * 1.001, costs
