"""Planners begin, exchange, heal and come to rest, whatever is lost and however late gossip is."""

from dataclasses import replace

import numpy as np
import pytest

from meshmoe.gossip import NodeView
from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.exchange import OwnTrace
from meshmoe.placement.exchange.plan import Plan
from meshmoe.placement.live import DEFAULT, Learning
from meshmoe.placement.live.plans import PlanNews, PlanReader
from meshmoe.placement.policies.negotiated import Negotiated
from meshmoe.placement.trace import Trace, no_steps
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


def test_owners_of_a_dead_node_are_adopted_and_its_return_is_no_trouble():
    world = small_world(1, nodes=4, redundancy=2.2)
    mesh = rested(world, 1)
    victim = world.nodes[2]
    mesh.stop(victim)
    mesh.look()
    mesh.settled.clear()
    mesh.run(120, lambda: mesh.all_settled() and mesh.is_covered())
    assert mesh.is_covered() and mesh.all_settled()
    for settled in mesh.settled.values():
        assert all(victim not in holders for holders in settled.holders.values())
    mesh.start(victim)
    mesh.look()
    mesh.feed(victim, OwnTrace(world.traces[2]))
    mesh.run(120, lambda: mesh.all_settled() and mesh.is_covered())
    assert mesh.is_covered() and mesh.planners[victim].machine.plan.held.any()


def test_a_newcomer_without_demand_takes_part():
    world = small_world(2, nodes=4, redundancy=1.8)
    mesh = Mesh(world, 2)
    newcomer = world.nodes[3]
    mesh.stop(newcomer)
    mesh.look()
    mesh.ask()
    mesh.run(120, mesh.all_settled)
    cost = mesh.cost()
    mesh.start(newcomer)
    mesh.look()
    mesh.run(120, lambda: mesh.all_settled() and mesh.is_covered())
    assert mesh.is_covered()
    assert mesh.planners[newcomer].machine.plan.owned.any(), "others make room for what they need more"
    assert mesh.cost() < cost


def test_two_halves_that_meet_again_end_with_one_owner_each():
    world = small_world(3, nodes=4, redundancy=4.0)
    mesh = Mesh(world, 3)
    halves = world.nodes[:2], world.nodes[2:]
    mesh.hidden = {(a, b) for one in halves for a in one for b in world.nodes if b not in one}
    mesh.look()
    mesh.ask()
    mesh.run(60, lambda: len(mesh.settled) == 4)
    assert (mesh.owners() == 2).all()
    mesh.hidden = set()
    mesh.look()
    mesh.settled.clear()
    mesh.run(120, lambda: mesh.all_settled() and mesh.is_covered())
    assert mesh.is_covered() and mesh.all_settled()


def test_too_little_room_leaves_the_guardian_rule():
    world = small_world(0, redundancy=1.0)
    mesh = Mesh(world)
    mesh.look()
    mesh.ask()
    mesh.run(20)
    assert not any(planner.awake for planner in mesh.planners.values())


def test_all_nodes_settle_on_the_same_holders_and_each_wants_its_part():
    mesh = rested(small_world(4, redundancy=1.5), 4)
    maps = [settled.holders for settled in mesh.settled.values()]
    assert all(one == maps[0] for one in maps)
    for name, settled in mesh.settled.items():
        assert set(settled.wants) == {expert for expert, holders in maps[0].items() if name in holders}
        owned = [expert for expert in settled.wants if maps[0][expert][0] == name]
        assert list(settled.wants[: len(owned)]) == owned, "what it owns comes first"


def test_a_change_of_use_moves_experts_once():
    world = small_world(5, redundancy=1.5, tokens=400)
    mesh = rested(world, 5)
    turned = [world.traces[(i + 1) % 3] for i in range(3)]
    mesh.world = replace(world, traces=tuple(turned))
    before = mesh.cost()
    mesh.settled.clear()
    mesh.ask(turned)
    mesh.run(120, mesh.all_settled)
    assert mesh.all_settled() and mesh.is_covered()
    assert mesh.cost() < before
    fresh = mesh_cost(mesh.world, Negotiated().place(without_spare_places(mesh.world)))
    assert mesh.cost() <= 1.1 * fresh
    mesh.settled.clear()
    mesh.run(30)
    assert not mesh.settled, "no second correction"


def test_weights_wait_for_a_node_that_is_about_to_think():
    world = small_world(4, redundancy=1.5)
    mesh = Mesh(world, 4)
    mesh.look()
    slow = world.nodes[1]
    mesh.feed(slow, Learning(True))
    mesh.ask((world.traces[0], Trace(no_steps(4), no_steps(4)), world.traces[2]))
    mesh.run(40)
    assert mesh.is_covered() and not mesh.settled
    mesh.feed(slow, Learning(False))
    mesh.feed(slow, OwnTrace(world.traces[1]))
    mesh.run(30, mesh.all_settled)
    assert mesh.all_settled()


def test_nobody_waits_longer_than_the_patience():
    world = small_world(4, redundancy=1.5)
    mesh = Mesh(world, 4)
    mesh.look()
    mesh.feed(world.nodes[1], Learning(True))
    mesh.ask()
    mesh.run(DEFAULT.patience_s + 20, mesh.all_settled)
    assert mesh.all_settled()


def test_a_plan_of_which_layers_are_missing_is_not_read():
    shape = small_world(0).shape
    held = np.zeros(shape.expert_bytes.shape, bool)
    held[1, :3] = held[3, 7] = True
    news = PlanNews()
    values = news.of(Plan(shape, 100_000, held, held.copy()), quiet=True)
    assert [type(value).__name__ for value in values] == ["Planned"] * shape.layers + ["PlanStamp"]
    assert news.of(Plan(shape, 100_000, held, held.copy()), quiet=True) == ()
    planned = {value.layer: value for value in values[:-1]}
    reader = PlanReader(shape)
    partly = NodeView("n1", 1, stamp=values[-1], planned={layer: planned[layer] for layer in (0, 1)})
    assert reader.read({"n1": partly}) == {}
    ((_, plan),) = reader.read({"n1": NodeView("n1", 1, stamp=values[-1], planned=planned)}).items()
    assert (plan.held == held).all() and (plan.owned == held).all()
    assert reader.read({"n1": NodeView("n1", 2)}) == {}, "another life"
