"""Links of unequal length: machines come to rest, and what neighbours agree on is near the optimum."""

import numpy as np
import pytest

from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.policies import Negotiated
from meshmoe.placement.policies.optimum import solve
from tests.placement.exchange.mesh import Mesh
from tests.placement.rings import ring


@pytest.mark.parametrize("seed", [2, 5])
def test_machines_come_to_rest(seed):
    world = ring(seed, 2, 8, 30)
    mesh = Mesh(world, seed)
    assert mesh.run(200.0), "an end that prices its own lots alone must count what the other end loses"
    assert max(np.diff(mesh.costs)) <= 0.01 * mesh.costs[0], "views are half a second old, so it may rise a little"


def test_the_optimum_is_near():
    costs = []
    for seed in (3, 4):
        world = ring(seed, 2, 8, 30)
        mesh = Mesh(world, seed)
        assert mesh.run(200.0)
        best = solve(world).cost
        near, any_ = Negotiated(neighbours_only=True).place(world), Negotiated().place(world)
        costs.append([mesh_cost(world, holders) / best for holders in (any_, near, mesh.holders())])
    assert (np.mean(costs, axis=0) < [1.03, 1.05, 1.055]).all(), costs
