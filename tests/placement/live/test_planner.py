"""Planners begin, exchange, heal and come to rest, whatever is lost and however late gossip is."""

from dataclasses import replace

import pytest

from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.policies.negotiated import Negotiated
from tests.placement.live.mesh import Mesh
from tests.placement.worlds import SIZE, small_world


def without_spare_places(world):
    """As much as the planners use."""
    specs = [replace(spec, capacity_bytes=spec.capacity_bytes - SIZE) for spec in world.specs]
    return replace(world, specs=tuple(specs))


def rested(world, seed=0, **options):
    mesh = Mesh(world, seed, **options)
    mesh.look()
    mesh.ask()
    mesh.run(120, mesh.all_settled)
    assert mesh.all_settled(), {
        name: planner.machine and planner.machine.quiet for name, planner in mesh.planners.items()
    }
    assert mesh.is_covered()
    return mesh


@pytest.mark.parametrize("seed", range(6))
def test_a_cold_mesh_comes_to_rest_near_what_one_head_would_find(seed):
    world = small_world(seed, redundancy=1.6)
    mesh = rested(world, seed, loss=0.05 * (seed % 3))
    usable = world.capacity_bytes
    assert all(
        int(world.shape.expert_bytes[planner.machine.plan.held].sum()) < usable[i]
        for i, planner in enumerate(mesh.planners.values())
    ), "a place is kept free"
    assert mesh.cost() <= 1.1 * mesh_cost(world, Negotiated().place(without_spare_places(world)))


def test_nobody_wakes_without_demand():
    mesh = Mesh(small_world(0, redundancy=1.6))
    mesh.look()
    mesh.run(20)
    assert not any(planner.awake for planner in mesh.planners.values())
