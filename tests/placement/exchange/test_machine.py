"""Exchange on bad networks: one result at both ends (S6), a cost that never rises (L3), no flapping (L4)."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from meshmoe.placement.bargain import Lot
from meshmoe.placement.cost import mesh_cost
from meshmoe.placement.exchange import (
    ExchangeAnswer,
    ExchangeConfig,
    ExchangeProposal,
    ExchangeVerdict,
    Heard,
    OwnTrace,
    PlanChanged,
    SendTo,
    Wake,
)
from meshmoe.placement.policies import Negotiated, Uniform
from meshmoe.placement.trace import Trace, decode_steps, no_steps
from tests.placement.exchange.mesh import Mesh
from tests.placement.worlds import routing, small_world

BAD = {"loss": 0.3, "repeats": 0.3, "delay_s": 0.8}
"""A third lost, a third twice, and delays of up to 1.6 s, longer than a retry: everything overtakes everything."""


def world_of(seed, **more):
    return small_world(seed, **{"nodes": 4, "experts": 12, "top_k": 3, "tokens": 60, "redundancy": 1.3, **more})


def assert_one_owner_each(mesh):
    assert (mesh.owners().sum(axis=0) == 1).all()
    mesh.world.check(mesh.holders())
    assert not (mesh.owners() & ~mesh.holders()).any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", [{}, BAD], ids=["good", "bad"])
def test_both_ends_do_the_same_and_all_become_quiet(seed, network):
    mesh = Mesh(world_of(seed), seed, **network)
    assert mesh.run(900.0), "not quiet after 15 minutes"
    assert_one_owner_each(mesh)
    # What one says it gave is what the other says it got, exchange by exchange.
    flows = defaultdict(Counter)
    for _, name, change in mesh.changes:
        if change.partner is not None:
            flows[name, change.partner].update(change.given)
            flows[change.partner, name].subtract(change.gained)
    assert any(mesh.changes) and flows
    assert all(not any(flow.values()) for flow in flows.values())


@pytest.mark.parametrize("seed", range(3))
def test_the_cost_never_rises_under_fixed_demand(seed):
    mesh = Mesh(world_of(seed), seed, **BAD)
    assert mesh.run(900.0)
    assert len(mesh.costs) > 3
    assert all(b <= a * (1 + 1e-9) for a, b in zip(mesh.costs, mesh.costs[1:], strict=False))
    assert mesh.costs[-1] < 0.9 * mesh_cost(mesh.world, Uniform().place(mesh.world))


def test_nor_does_it_on_unequal_links_when_exchanges_do_not_overlap():
    links = [(0, 1, 1.0), (1, 2, 6.0), (2, 3, 1.0), (0, 3, 9.0)]
    for seed in range(3):
        mesh = Mesh(world_of(seed, links=links), seed, delay_s=1e-6)
        assert mesh.run(900.0)
        assert all(b <= a * (1 + 1e-9) for a, b in zip(mesh.costs, mesh.costs[1:], strict=False))


def test_it_ends_as_well_as_bargaining_in_turn():
    ratios = []
    for seed in range(3):
        mesh = Mesh(world_of(seed), seed)
        assert mesh.run(900.0)
        ratios.append(mesh.costs[-1] / mesh_cost(mesh.world, Negotiated().place(mesh.world)))
    assert 0.95 < np.mean(ratios) < 1.05, ratios


def test_noise_between_views_neither_loses_an_expert_nor_keeps_anyone_busy():
    for seed in range(3):
        mesh = Mesh(world_of(seed), seed, noise=0.1)
        assert mesh.run(900.0)
        assert_one_owner_each(mesh)


def test_no_flapping():
    """An expert comes to a node it had left at most once while settling, and fixed demand then moves nothing."""
    for seed in range(3):
        mesh = Mesh(world_of(seed), seed)
        assert mesh.run(900.0)
        arrivals = Counter((name, e) for _, name, change in mesh.changes for e in change.adds)
        assert max(arrivals.values()) <= 3
        before = len(mesh.changes)
        mesh.demand_changed(list(mesh.world.traces))  # the same demand, thought over again
        assert mesh.run(mesh.now + 900.0)
        moved = sum(len(change.adds) for _, _, change in mesh.changes[before:])
        assert moved <= 0.05 * mesh.world.shape.exists.sum()


def test_after_a_shift_of_demand_it_settles_again_at_a_fresh_starts_cost():
    world = world_of(1)
    mesh = Mesh(world, 1)
    assert mesh.run(900.0)
    rng = np.random.default_rng(7)
    traces = [Trace(decode_steps(routing(rng, 60, 4, 12, 3, 0.3), 10.0), no_steps(4)) for _ in world.nodes]
    shifted = type(world)(world.shape, world.nodes, world.specs, tuple(traces), world.rtt_s, world.byte_s, world.near)
    stale = mesh_cost(shifted, mesh.holders())
    mesh.world = shifted
    mesh.demand_changed(traces)
    assert mesh.run(mesh.now + 900.0)
    assert_one_owner_each(mesh)
    now, fresh = mesh_cost(shifted, mesh.holders()), mesh_cost(shifted, Negotiated().place(shifted))
    assert now < stale
    assert now < 1.06 * fresh


def pair(seed=0):
    """Two machines that know each other, at the moment when they may propose."""
    mesh = Mesh(world_of(seed, nodes=2), seed)
    mesh.now = 10.0
    mesh.gossip()
    return mesh, *mesh.machines.values()


def sent(effects):
    return [effect.message for effect in effects if isinstance(effect, SendTo)]


def test_of_crossing_proposals_the_smaller_names_stands():
    mesh, a, b = pair()
    for machine in (a, b):
        machine.handle(Wake(), 10.0)  # choice of copies
    mesh.gossip()
    (of_a,) = sent(a.handle(Wake(), 20.0))
    (of_b,) = sent(b.handle(Wake(), 20.0))
    (busy,) = sent(a.handle(Heard(mesh.world.nodes[1], of_b), 20.1))
    assert busy.reply == "busy"
    (answer,) = sent(b.handle(Heard(mesh.world.nodes[0], of_a), 20.1))
    assert answer.reply == "accepted"
    assert not b.handle(Heard(mesh.world.nodes[0], busy), 20.2)  # of a proposal that b has dropped itself


def accepted(mesh, a, b):
    """Bring the two to where b is bound."""
    names = mesh.world.nodes
    a.handle(Wake(), 10.0)  # choice of copies
    mesh.gossip()
    (proposal,) = sent(a.handle(Wake(), 100.0))
    (answer,) = sent(b.handle(Heard(names[0], proposal), 100.1))
    assert answer.reply == "accepted"
    return proposal, answer


def test_a_lost_verdict_is_told_again_and_a_late_proposal_is_known():
    mesh, a, b = pair()
    one, two = mesh.world.nodes
    proposal, answer = accepted(mesh, a, b)
    effects = a.handle(Heard(two, answer), 100.2)
    (verdict,) = sent(effects)
    assert verdict == ExchangeVerdict(answer.id, True)
    assert any(isinstance(e, PlanChanged) for e in effects)
    (again,) = sent(b.handle(Wake(), b.next_deadline()))  # the verdict was lost
    assert again == answer
    (verdict,) = sent(a.handle(Heard(two, again), 101.0))
    assert verdict.done
    assert any(isinstance(e, PlanChanged) for e in b.handle(Heard(one, verdict), 101.1))
    version = b.plan.version
    assert not b.handle(Heard(one, verdict), 101.2)  # twice
    assert not b.handle(Heard(one, proposal), 101.3)  # late
    assert b.plan.version == version
    assert_one_owner_each(mesh)


def test_a_proposer_that_gave_up_says_so():
    mesh, a, b = pair()
    one, two = mesh.world.nodes
    _, answer = accepted(mesh, a, b)
    owned = b.plan.owned.copy()
    while a._exchange is not None:
        a.handle(Wake(), a.next_deadline())
    (verdict,) = sent(a.handle(Heard(two, answer), 200.0))
    assert not verdict.done
    b.handle(Heard(one, verdict), 200.1)
    assert b._exchange is None and (b.plan.owned == owned).all()


def test_a_bound_node_is_freed_when_its_proposer_is_gone():
    mesh, a, b = pair()
    accepted(mesh, a, b)
    mesh.gone.add(mesh.world.nodes[0])
    mesh.gossip()
    assert b._exchange is None


def test_an_answer_that_was_computed_otherwise_changes_nothing():
    mesh, a, b = pair()
    _, answer = accepted(mesh, a, b)
    other = ExchangeAnswer(answer.id, "accepted", answer.lots, answer.prices, answer.room_bytes, b"x" * 16)
    effects = a.handle(Heard(mesh.world.nodes[1], other), 100.2)
    assert sent(effects) == [ExchangeVerdict(answer.id, False)]
    assert not any(isinstance(e, PlanChanged) for e in effects)


@pytest.mark.parametrize(
    "lot",
    [
        Lot(99, two_adds=(0,)),
        Lot(0, two_adds=(99,)),
    ],
)
def test_lots_about_experts_that_do_not_exist_are_refused(lot):
    mesh, _, b = pair()
    proposal = ExchangeProposal(5, 0, b.plan.version, [lot], [10**9], 0, 0)
    (answer,) = sent(b.handle(Heard(mesh.world.nodes[0], proposal), 10.0))
    assert answer.reply == "refused"


@pytest.mark.parametrize("lot", [Lot(99, two_adds=(0,)), Lot(0, two_adds=(99,)), Lot(0, one_drops=(99,))])
def test_an_answer_about_experts_that_do_not_exist_is_called_off(lot):
    mesh, a, b = pair()
    proposal, answer = accepted(mesh, a, b)
    prices = [*answer.prices[: len(proposal.lots)], 10**15]
    hostile = ExchangeAnswer(answer.id, "accepted", [lot], prices, 0, answer.digest)
    assert sent(a.handle(Heard(mesh.world.nodes[1], hostile), 100.2)) == [ExchangeVerdict(answer.id, False)]


def test_a_plan_does_not_give_what_it_has_not():
    mesh, _, b = pair()
    layer, foreign = map(int, np.argwhere(~b.plan.owned)[0])
    proposal = ExchangeProposal(5, 0, b.plan.version, [Lot(layer, to_one=(foreign,))], [10**15], 0, 0)
    (answer,) = sent(b.handle(Heard(mesh.world.nodes[0], proposal), 10.0))
    assert answer.reply == "refused"


def test_the_second_proposal_to_a_peer_knows_its_sketch():
    mesh, a, b = pair()
    one, two = mesh.world.nodes
    proposal, answer = accepted(mesh, a, b)
    assert proposal.sketch_known == 0 and answer.sketch is not None
    (verdict,) = sent(a.handle(Heard(two, answer), 100.2))
    b.handle(Heard(one, verdict), 100.3)
    mesh.gossip()
    while not (proposals := sent(a.handle(Wake(), a.next_deadline()))):
        mesh.gossip()  # a has chosen copies
    (again,) = proposals
    assert again.sketch_known == answer.sketch.version
    for reply in sent(b.handle(Heard(one, again), 200.0)):
        assert reply.sketch is None
    b.handle(OwnTrace(mesh.world.traces[0]), 200.1)
    assert b._stand.sketch(b._first_id + 1 + b._thought) != answer.sketch


def asked_in_vain(mesh):
    """How often each node was told "idle", without a sketch that was news, between changes of its plan, at most."""
    plans, counts, most = {}, Counter(), Counter()
    for sender, peer, message in mesh.sent:
        if isinstance(message, ExchangeProposal) and plans.get(sender) != message.one_version:
            plans[sender], counts[sender] = message.one_version, 0
        if isinstance(message, ExchangeAnswer) and message.reply == "idle" and message.sketch is None:
            counts[peer] += 1
            most[peer] = max(most[peer], counts[peer])
    return most


def test_of_many_peers_only_some_are_asked_in_vain():
    world = world_of(0, nodes=9)
    few, all_ = (Mesh(world, 0, noise=0.1, config=ExchangeConfig(asked_max=count), costs=False) for count in (3, 100))
    for mesh in (few, all_):
        assert mesh.run(900.0)
        assert_one_owner_each(mesh)
    assert max(asked_in_vain(few).values()) == 3
    assert max(asked_in_vain(all_).values()) > 7
    even = mesh_cost(world, Uniform().place(world))
    assert mesh_cost(world, few.holders()) < mesh_cost(world, all_.holders()) + 0.05 * even
    before = len(few.sent)
    few.demand_changed([*world.traces[1:], world.traces[0]])
    assert not few.quiet(), "other demand is another question"
    assert few.run(few.now + 900.0) and len(few.sent) > before
