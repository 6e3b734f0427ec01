"""Real machines, membership and gossip together, on the virtual network: budgets, convergence, coming and going.

More nodes, more seeds, more loss: ``.venv/bin/python -m tests.gossip.figures``.
"""

import pytest

from meshmoe.core.ids import ExpertId
from meshmoe.gossip import DEFAULT, Holdings, Load, NodeInfo, Publish, Withdraw
from tests.gossip.figures import rounds_to_converge, spread, talking_mesh, traffic
from tests.gossip.workload import EDGE, Model
from tests.membership.virtual import Path, VirtualNet

seeds = pytest.mark.parametrize("seed", range(3))


def small_mesh(seed, n=6, **options):
    """Nodes that each hold one expert of layer 0: the one of their own number."""
    net = VirtualNet(seed, gossip=DEFAULT, **options)
    nodes = net.mesh(n)
    for index, node in enumerate(nodes):
        net.tell(node, Publish((NodeInfo("serving", node.endpoints, "0"), Load(1, 1), Holdings.of(0, [index]))))
    return net, nodes


def agreed(net):
    """Whether all active nodes see, and say that they see, one holder map."""
    views = [node.gossip.view for node in net.active()]
    return len({view.holder_digest() for view in views}) == 1 and not any(view.disagreeing() for view in views)


# -- figures ---------------------------------------------------------


def test_ten_nodes_keep_within_fifteen_kilobytes_a_second():
    net, nodes = talking_mesh(10, 1)
    shown = traffic(net, nodes, 30)
    assert shown.most <= 15_000
    assert shown.stale_s < 0.5
    assert sum(node.gossip.sent_bytes for node in nodes) >= sum(
        node.sent_bytes[tag] for node in nodes for tag in ("gossip", "digest", "delta")
    )


def test_ten_nodes_keep_within_fifteen_kilobytes_a_second_though_half_of_all_messages_are_lost():
    net, nodes = talking_mesh(10, 1, loss=0.5)
    shown = traffic(net, nodes, 30)
    assert shown.most <= 15_000
    assert shown.stale_s < 5


def test_a_hundred_nodes_keep_within_a_hundred_and_twenty_kilobytes_a_second():
    net, nodes = talking_mesh(100, 1, model=Model(2, 32), settle_s=2.0, meet_s=4.0)
    shown = traffic(net, nodes, 3)
    assert shown.most <= 120_000
    assert shown.stale_s < 1.5


@seeds
def test_an_urgent_change_takes_one_hop_in_a_small_mesh(seed):
    net, _ = talking_mesh(10, seed, model=EDGE, settle_s=3.0)
    assert spread(net, urgent=True)[-1] < 0.05


@seeds
def test_a_plain_change_waits_for_the_interval(seed):
    net, _ = talking_mesh(10, seed, model=EDGE, settle_s=3.0)
    assert spread(net, urgent=False)[-1] < DEFAULT.interval_s + 0.05


@pytest.mark.parametrize(("n", "rounds"), [(10, 1), (100, 8)])
def test_rounds_to_converge(n, rounds):
    assert all(len(rounds_to_converge(n, seed)[0]) <= rounds for seed in range(3))


# -- coming and going ------------------------------------------------


@seeds
def test_all_see_one_holder_map_and_say_so(seed):
    net, nodes = small_mesh(seed, validate=True)
    assert net.run(6, until=lambda: agreed(net))
    for node in nodes:
        assert [node.gossip.view.holders(ExpertId(0, i)) for i in range(6)] == [(other.node,) for other in nodes]


@seeds
def test_a_newcomer_learns_everything(seed):
    net, nodes = small_mesh(seed)
    net.run(5)
    newcomer = net.start("newcomer")
    net.introduce(newcomer, nodes[0])
    assert net.run(2, until=lambda: len(newcomer.gossip.view.holder_map()) == 6)
    net.tell(newcomer, Publish((Holdings.of(0, [9]),)))
    assert net.run(2, until=lambda: all(n.gossip.view.holders(ExpertId(0, 9)) for n in net.active()))


@seeds
def test_who_left_or_died_holds_nothing(seed):
    net, nodes = small_mesh(seed)
    net.run(5)
    net.leave(nodes[1])
    net.crash(nodes[2])
    assert net.run(12, until=lambda: all(len(n.gossip.view.holder_map()) == 4 for n in net.active()))
    net.run(DEFAULT.dead_retain_s + 30)
    for node in net.active():
        assert node.gossip.view.nodes.keys() == {other.node for other in net.active()}
        assert node.gossip._store.replicas.keys() == {other.node for other in net.active()}
    assert agreed(net)


@seeds
def test_a_restart_tells_its_own_story(seed):
    net, nodes = small_mesh(seed)
    net.run(5)
    net.crash(nodes[1])
    again = net.start(nodes[1].node)
    net.introduce(again, nodes[0])
    net.tell(again, Publish((Holdings.of(0, [77]),)))
    assert net.run(5, until=lambda: all(n.gossip.view.holders(ExpertId(0, 77)) for n in net.active()))
    net.run(30)
    assert all(n.gossip.view.holders(ExpertId(0, 1)) == () for n in net.active())
    assert agreed(net)


@seeds
def test_a_removed_key_is_gone_for_good(seed):
    """Also for a node that was away while the tombstone was collected."""
    net, nodes = small_mesh(seed)
    net.run(5)
    net.partition(nodes[:3], nodes[3:])
    net.run(10)
    net.tell(nodes[0], Withdraw(("holdings/0",)))
    net.run(DEFAULT.tombstone_s + 10)
    net.tell(nodes[0], Publish((Load(2, 2),)))
    net.heal()
    assert net.run(30, until=lambda: net.converged() and agreed(net))
    assert all(n.gossip.view.holders(ExpertId(0, 0)) == () for n in nodes)
    assert all("holdings/0" not in n.gossip._store.replicas[nodes[0].node].entries for n in nodes)


@seeds
def test_both_sides_of_a_partition_go_on_and_merge(seed):
    net, nodes = small_mesh(seed)
    net.run(5)
    net.partition(nodes[:3], nodes[3:])
    net.run(15)
    assert len(nodes[0].gossip.view.holder_map()) == 3
    for index, node in enumerate(nodes):
        net.tell(node, Publish((Holdings.of(0, [index, index + 10]),)))
    net.run(5)
    net.heal()
    assert net.run(20, until=lambda: net.converged() and agreed(net))
    assert all(len(node.gossip.view.holder_map()) == 12 for node in nodes)


@seeds
def test_who_stood_still_catches_up(seed):
    net, nodes = small_mesh(seed)
    net.run(5)
    net.pause(nodes[2])
    for step in range(20):
        net.tell(nodes[0], Publish((Holdings.of(0, [0, 20 + step]),)))
        net.run(1)
    net.resume(nodes[2])
    assert net.run(10, until=lambda: nodes[2].gossip.view.holders(ExpertId(0, 39)) == (nodes[0].node,))
    assert net.run(10, until=lambda: agreed(net))


@seeds
def test_a_pair_that_cannot_speak_hears_through_others(seed):
    net, nodes = small_mesh(seed)
    pair = {nodes[0].node, nodes[1].node}
    net.blocked = lambda sender, receiver: {sender, receiver} == pair
    net.tell(nodes[0], Publish((Holdings.of(0, [50]),)))
    assert net.run(10, until=lambda: bool(nodes[1].gossip.view.holders(ExpertId(0, 50))))


def test_agreement_returns_after_heavy_loss():
    net, _ = talking_mesh(12, 3, loss=0.5, model=EDGE)
    net.path = Path()
    assert net.run(30, until=lambda: agreed(net))
