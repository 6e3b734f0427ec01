"""What the ends and bystanders pay is what the cost function says, lot by lot, and makes bargains that help all."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.placement.bargain import Lot
from meshmoe.placement.bystanders import marks_of, they_pay, who_holds
from meshmoe.placement.cost import mesh_cost, node_cost
from meshmoe.placement.lots import apply
from meshmoe.placement.policies import Negotiated
from meshmoe.placement.seed import guardian_owners
from meshmoe.placement.table import tabulate
from tests.placement.worlds import outlook_of, small_world


def line(seed, **more):
    return small_world(seed, nodes=4, links=[(0, 1, 1.0), (1, 2, 3.0), (2, 3, 2.0)], tokens=60, **more)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_it_is_the_rise_of_each_ones_costs(seed):
    world, rng = line(seed, prefill=True), np.random.default_rng(seed)
    owner = guardian_owners(world.shape, world.nodes, world.capacity_bytes)
    holders = (owner == np.arange(4)[:, None, None]) | (rng.random((4, *owner.shape)) < 0.2)
    outlook = outlook_of(world, holders, owner)
    one, two = rng.permutation(4)[:2].tolist()
    lots = []
    for layer in range(world.shape.layers):
        mine, theirs = holders[one, layer], holders[two, layer]
        takes = tuple(np.flatnonzero((owner[layer] == two) & ~mine)[:3].tolist())
        copies = tuple(np.flatnonzero(~theirs & (owner[layer] != one))[:2].tolist())
        extras = tuple(np.flatnonzero(mine & (owner[layer] != one))[:1].tolist())
        lots += [Lot(layer, takes, (), takes, extras, (), takes), Lot(layer, two_adds=copies)]
    tables = {i: tabulate(world.shape, world.specs[i], world.traces[i]) for i in range(4)}
    layers = np.array([lot.layer for lot in lots])
    marks = [marks_of(lots, world.shape.experts, proposer=proposer) for proposer in (True, False)]
    for node in range(4):
        pay = they_pay(outlook, (one, two), layers, (marks[0], marks[1]), {node: tables[node]}, who_holds(holders))
        for lot, more_s in zip(lots, pay, strict=True):
            after, owner_after = holders.copy(), owner.copy()
            apply([lot], one, two, after, owner_after)
            rise_s = node_cost(world, node, after) - node_cost(world, node, holders)
            np.testing.assert_allclose(more_s, rise_s, rtol=1e-9, atol=1e-12)


def test_knowing_bystanders_makes_unequal_meshes_cheaper():
    links = [(i, j, 1.0 if (i < 3) == (j < 3) else 15.0) for i in range(6) for j in range(i)]
    costs = []
    for seed in range(2):
        world = small_world(seed, nodes=6, experts=16, top_k=4, redundancy=1.3, tokens=100, links=links)
        costs.append(mesh_cost(world, Negotiated().place(world)) / mesh_cost(world, _Blind().place(world)))
    assert np.mean(costs) < 0.97, costs


class _Blind(Negotiated):
    """Which has nobody's demand but the two ends'."""

    def _begin(self, world, start):
        table = super()._begin(world, start)
        table._partners = [set() for _ in world.nodes]
        return table
