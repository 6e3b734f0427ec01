"""Real machines on the virtual network: joining, dying, leaving, coming back, partitions, pauses, one name twice."""

from dataclasses import replace
from itertools import pairwise

import pytest

from meshmoe.membership import (
    LAN,
    WAN,
    LeaveFinished,
    LocalHealth,
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLeft,
    MemberState,
    MemberSuspect,
    NameConflict,
)
from tests.membership.virtual import Path, VirtualNet

ALIVE, SUSPECT, DEAD, LEFT = MemberState
SEEDS = range(3)

seeds = pytest.mark.parametrize("seed", SEEDS)


@seeds
def test_everybody_meets_everybody_through_one_member(seed):
    net = VirtualNet(seed, validate=True)
    nodes = [net.start(f"n{i}") for i in range(20)]
    for newcomer in nodes[1:]:
        net.introduce(newcomer, nodes[0])
        net.run(0.05)
    assert net.run(5, until=net.converged)
    assert not net.seen(MemberSuspect)


@seeds
def test_a_chain_of_acquaintances_is_enough(seed):
    net = VirtualNet(seed)
    nodes = [net.start(f"n{i}") for i in range(10)]
    for earlier, later in pairwise(nodes):
        net.introduce(later, earlier)
    assert net.run(5, until=net.converged)


@seeds
def test_a_quiet_mesh_suspects_nobody(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(10)
    before_s = net.now
    net.run(300)
    assert not net.seen(MemberSuspect, since_s=before_s)
    rtts = [node.membership.rtt(other) for node in nodes for other in node.membership.members]
    assert all(1.0 <= rtt.min_ms <= rtt.median_ms <= 2.0 for rtt in rtts)


@seeds
def test_a_farewell_is_heard_by_all_at_once_and_is_no_death(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(10)
    net.leave(nodes[3])
    assert net.run(1, until=lambda: net.believe(nodes[3], LEFT) and not nodes[3].running)
    net.run(30)
    assert len(net.seen(LeaveFinished)) == 1
    assert len(net.seen(MemberLeft, of=nodes[3])) == 9
    assert not net.seen(MemberDead)
    assert not net.seen(MemberSuspect)


@seeds
def test_a_farewell_into_heavy_loss_is_still_no_death(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(20)
    net.path = Path(loss=0.3)
    net.leave(nodes[3])
    assert net.run(5, until=lambda: net.believe(nodes[3], LEFT))
    assert not net.seen(MemberDead, of=nodes[3])


@seeds
def test_a_restart_under_the_same_name_replaces_the_earlier_life_at_once(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(10)
    earlier = nodes[3]
    net.crash(earlier)
    net.run(0.5)  # before anybody noticed
    later = net.start(earlier.node)
    net.introduce(later, nodes[0])
    assert net.run(1.5, until=lambda: net.believe(later, ALIVE))
    net.run(20)
    assert net.converged()
    assert not net.seen(NameConflict)
    assert len(net.seen(MemberDead, of=earlier)) == 9
    assert not net.seen(MemberSuspect, of=later)


@seeds
def test_the_dead_come_back_under_a_later_generation(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(10)
    net.crash(nodes[3])
    net.run(20)
    assert net.believe(nodes[3], DEAD)
    later = net.start(nodes[3].node)
    net.introduce(later, nodes[0])
    assert net.run(2, until=net.converged)


@seeds
def test_a_restart_at_the_same_place_needs_no_introduction(seed):
    """The dead are probed where they were: who lives there now answers under its own generation."""
    net = VirtualNet(seed)
    nodes = net.mesh(5)
    net.crash(nodes[3])
    net.run(15)
    net.start(nodes[3].node, same_place=True)
    assert net.run(15, until=net.converged)


@seeds
def test_a_partition_buries_and_healing_digs_up(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(12)
    net.partition(nodes[:6], nodes[6:])
    net.run(30)
    for node in nodes:
        here, there = (nodes[:6], nodes[6:]) if node in nodes[:6] else (nodes[6:], nodes[:6])
        states = {other: member.state for other, member in node.membership.members.items()}
        assert all(states[other.node] is ALIVE for other in here if other is not node)
        assert all(states[other.node] is DEAD for other in there)
    net.heal()
    healed_s = net.now
    assert net.run(15, until=net.converged)
    net.run(60)
    assert not net.seen(MemberDead, since_s=healed_s), "healing must not kill"


@seeds
def test_who_joined_during_a_partition_is_known_on_both_sides_afterwards(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(8)
    net.partition(nodes[:4], nodes[4:])
    net.run(20)
    left, right = net.start("left"), net.start("right")
    net.partition([*nodes[:4], left], [*nodes[4:], right])
    net.introduce(left, nodes[0])
    net.introduce(right, nodes[7])
    net.run(20)
    net.heal()
    assert net.run(20, until=net.converged)


@seeds
def test_a_broken_link_between_two_kills_neither(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(8)
    pair = {nodes[2].node, nodes[5].node}
    net.blocked = lambda sender, receiver: {sender, receiver} == pair
    net.run(120)
    assert not net.seen(MemberDead)


@seeds
def test_a_link_broken_one_way_kills_neither(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(8)
    net.blocked = lambda sender, receiver: (sender, receiver) == (nodes[2].node, nodes[5].node)
    net.run(120)
    assert not net.seen(MemberDead)


@seeds
def test_who_hears_nobody_is_dead_to_others(seed):
    """It still sends, but cannot be reached: no use to anybody."""
    net = VirtualNet(seed)
    nodes = net.mesh(8)
    deaf = nodes[2]
    net.blocked = lambda sender, receiver: receiver == deaf.node
    assert net.run(30, until=lambda: all(n.membership.members[deaf.node].state is DEAD for n in nodes if n is not deaf))
    net.heal()
    assert net.run(15, until=net.converged)


@seeds
def test_a_pause_of_twenty_seconds(seed):
    """SIGSTOP: the others bury it; on waking it buries nobody, and is soon alive to all."""
    net = VirtualNet(seed)
    nodes = net.mesh(7)
    sleeper = nodes[3]
    net.pause(sleeper)
    net.run(20)
    assert all(n.membership.members[sleeper.node].state is DEAD for n in nodes if n is not sleeper)
    woken_s = net.now
    net.resume(sleeper)
    assert net.run(5, until=net.converged)
    net.run(60)
    assert [e for e in net.seen(MemberDead, since_s=woken_s) if e.node == sleeper.node] == []
    assert net.false_deaths(woken_s) == []


@seeds
def test_most_of_the_mesh_pauses(seed):
    """The host of five of seven virtual machines is suspended: none of the five accuses, nobody stays dead."""
    net = VirtualNet(seed)
    nodes = net.mesh(7)
    sleepers = nodes[:5]
    for node in sleepers:
        net.pause(node)
    net.run(20)
    woken_s = net.now
    for node in sleepers:
        net.resume(node)
    names = {node.node for node in sleepers}
    assert net.run(15, until=net.converged)
    assert [e for e in net.seen(MemberDead, since_s=woken_s) if e.node in names] == []


@seeds
def test_a_node_with_a_saturated_loop_buries_nobody(seed):
    """Its loop stands still for 0.9 s at a time, half of all time: its answers are late, its own clock is worthless."""
    net = VirtualNet(seed)
    nodes = net.mesh(10)
    busy = nodes[4]

    def stall():
        net.pause(busy)
        net.at(0.9, lambda: (net.resume(busy), net.feed(busy, LocalHealth(0.9))))
        net.at(1.8, stall)

    stall()
    net.run(120)
    assert not net.seen(MemberDead)
    assert [e for e in net.seen(MemberSuspect) if e.node == busy.node] == []


@seeds
def test_two_living_nodes_of_one_name(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(5)
    earlier = nodes[2]
    later = net.start(earlier.node)
    net.introduce(later, nodes[0])
    net.run(10)
    yielding = [e for e in net.seen(NameConflict) if e.effect.yields]
    assert [(e.node, e.effect.generation) for e in yielding] == [(earlier.node, earlier.generation)]
    assert yielding[0].effect.other.generation == later.generation
    assert net.converged()
    assert later.membership.members.keys() == {node.node for node in nodes} - {later.node}


def test_clock_set_back():
    """A restart whose generation is lower than its earlier life's hears of it, so that it can come back higher."""
    net = VirtualNet(1)
    nodes = net.mesh(5)
    net.crash(nodes[2])
    net.run(20)
    again = net.start(nodes[2].node, generation=nodes[2].generation - 5)
    net.introduce(again, nodes[0])
    net.run(5)
    (conflict,) = [e.effect for e in net.seen(NameConflict) if e.effect.yields]
    assert conflict.other.generation == nodes[2].generation
    assert not conflict.other.state.present
    third = net.start(nodes[2].node, generation=conflict.other.generation + 1)
    net.introduce(third, nodes[0])
    assert net.run(5, until=net.converged)


@seeds
def test_nodes_that_left_and_came_back_to_each_other_are_found(seed):
    net = VirtualNet(seed)
    nodes = net.mesh(5)
    for node in nodes[:2]:
        net.leave(node)
    net.run(5)
    assert all(net.believe(node, LEFT) for node in nodes[:2])
    first, second = (net.start(node.node, same_place=True) for node in nodes[:2])
    net.introduce(second, first)  # of the other three they know nothing
    assert net.run(40, until=net.converged)
    net.run(60)
    assert net.converged()


@seeds
def test_duplicated_and_reordered_messages_do_no_harm(seed):
    net = VirtualNet(seed, path=Path(delay_s=0.001, jitter_s=0.3, duplication=0.5))
    net.mesh(10)
    before_s = net.now
    net.run(120)
    assert not net.seen(MemberDead, since_s=before_s)


def test_the_gone_are_forgotten_and_do_not_come_back():
    config = replace(LAN, dead_retain_s=120.0, left_retain_s=60.0)
    net = VirtualNet(1, membership=config)
    nodes = net.mesh(6)
    net.crash(nodes[1])
    net.leave(nodes[2])
    net.run(config.dead_retain_s + 60)
    assert len(net.seen(MemberForgotten, of=nodes[1])) == 4
    assert len(net.seen(MemberForgotten, of=nodes[2])) == 4
    forgotten_s = net.now
    net.run(200)
    assert all(len(node.membership.members) == 3 for node in net.active())
    assert not [e for kind in (MemberAlive, MemberSuspect, MemberDead) for e in net.seen(kind, since_s=forgotten_s)]


@seeds
def test_the_wan_preset_on_slow_and_shaky_links(seed):
    net = VirtualNet(seed, membership=WAN, path=Path(delay_s=0.1, jitter_s=0.2, loss=0.05))
    nodes = net.mesh(10, settle_s=30)
    before_s = net.now
    net.run(300)
    assert not net.seen(MemberDead, since_s=before_s)
    crashed_s = net.now
    net.crash(nodes[4])
    assert net.run(30, until=lambda: net.believe(nodes[4], DEAD))
    assert net.now - crashed_s < 25
    assert not net.false_deaths()


def test_a_seed_repeats_a_run_exactly():
    def history():
        net = VirtualNet(7, path=Path(loss=0.3, jitter_s=0.05))
        nodes = net.mesh(8)
        net.crash(nodes[1])
        net.run(20)
        return [(e.at_s, e.node, type(e.effect), getattr(e.effect, "member", None)) for e in net.log]

    assert history() == history()
