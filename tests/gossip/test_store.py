"""Others' entries: whose are seen, whose are dropped, and what is refused."""

from dataclasses import replace

import pytest

from meshmoe.core.ids import ExpertId
from meshmoe.gossip import DEFAULT
from meshmoe.gossip.messages import Entry, GossipDelta, GossipDigest, GossipPush, NodeDelta, NodeDigest
from meshmoe.membership import MemberAlive, MemberDead, MemberForgotten, MemberLeft, MemberState, MemberSuspect
from tests.gossip.support import A, B, Bench, holdings, member, sent


def test_only_who_membership_holds_for_present_is_seen():
    bench = Bench(A)
    bench.hear(A, GossipPush([holdings(B, 1)]))
    assert bench.view.holders(ExpertId(0, 1)) == ()
    bench.do(MemberAlive(member(B)))
    assert bench.view.holders(ExpertId(0, 1)) == (B,)
    bench.do(MemberSuspect(member(B, MemberState.SUSPECT)))
    assert bench.view.nodes[B].suspect
    bench.do(MemberDead(member(B, MemberState.DEAD)))
    assert bench.view.holders(ExpertId(0, 1)) == ()
    bench.do(MemberAlive(member(B)))
    assert bench.view.holders(ExpertId(0, 1)) == (B,), "the death was refuted"


def test_the_dead_are_dropped_after_a_while_and_refused():
    bench = Bench(A, B)
    bench.hear(B, GossipPush([holdings(B, 1)]))
    bench.do(MemberDead(member(B, MemberState.DEAD)))
    bench.run(DEFAULT.dead_retain_s + 1)
    bench.hear(A, GossipPush([holdings(B, 1)]))
    bench.do(MemberAlive(member(B)))
    assert bench.view.holders(ExpertId(0, 1)) == (), "what was on its way is not believed"
    bench.hear(A, GossipPush([holdings(B, 1)]))
    assert bench.view.holders(ExpertId(0, 1)) == (B,), "but who is alive again may speak again"


@pytest.mark.parametrize("gone", [MemberLeft, MemberForgotten])
def test_what_is_on_its_way_does_not_resurrect_who_left(gone):
    bench = Bench(A, B)
    bench.hear(B, GossipPush([holdings(B, 1)]))
    bench.do(gone(member(B, MemberState.LEFT)))
    assert sent(bench.hear(A, GossipPush([holdings(B, 2, version=2, after=1)])), GossipDelta) == []
    assert sent(bench.hear(A, GossipDigest([NodeDigest(B, 1, 9)])), GossipDelta) == []
    bench.do(MemberAlive(member(B, generation=2)))
    assert bench.view.nodes[B].generation == 2
    assert bench.view.holders(ExpertId(0, 1)) == bench.view.holders(ExpertId(0, 2)) == ()


def test_a_later_life_hides_the_entries_of_the_earlier():
    bench = Bench(A, B)
    bench.hear(B, GossipPush([holdings(B, 1)]))
    bench.do(MemberDead(member(B, MemberState.DEAD)))
    bench.do(MemberAlive(member(B, generation=2)))
    assert bench.view.holders(ExpertId(0, 1)) == ()
    bench.hear(A, GossipPush([holdings(B, 1, version=9)]))
    assert bench.view.holders(ExpertId(0, 1)) == ()
    bench.hear(B, GossipPush([holdings(B, 3, generation=2)]))
    assert bench.view.holders(ExpertId(0, 3)) == (B,)


def test_entries_ahead_of_membership_wait_for_it():
    bench = Bench(A, B)
    bench.hear(B, GossipPush([holdings(B, 1)]))
    bench.hear(A, GossipPush([holdings(B, 2, generation=2)]))
    assert B not in bench.view.nodes
    bench.do(MemberDead(member(B, MemberState.DEAD)))
    bench.do(MemberAlive(member(B, generation=2)))
    assert bench.view.holders(ExpertId(0, 2)) == (B,)


def test_the_first_entries_heard_may_be_of_a_later_life():
    """Found by chaos: a node was shown in one life with the entries of the next."""
    bench = Bench(A, B)
    bench.hear(A, GossipPush([holdings(B, 2, generation=2)]))
    assert B not in bench.view.nodes
    assert bench.view.holder_map() == {}
    bench.do(MemberSuspect(member(B, MemberState.SUSPECT)))
    assert bench.view.holder_map() == {}


def test_strangers_are_dropped_if_membership_never_speaks_of_them():
    bench = Bench(A)
    bench.hear(A, GossipPush([holdings(B, 1)]))
    bench.run(DEFAULT.stranger_s + 1)
    bench.do(MemberAlive(member(B)))
    assert bench.view.holders(ExpertId(0, 1)) == ()


def test_unreadable_values_are_counted_and_passed_over():
    bench = Bench(A)
    broken = NodeDelta(A, 1, 0, 0, 2, [Entry("holdings/0", 1, b"\xc1"), Entry("weather", 2, b"\x01")])
    bench.hear(A, GossipPush([broken]))
    assert bench.machine.invalid_values == 2
    assert bench.view.nodes[A].holdings == {}


def test_owners_are_bounded():
    bench = Bench(A, config=replace(DEFAULT, nodes_max=3))
    bench.hear(A, GossipPush([holdings(f"n{i}", 1) for i in range(9)]))
    for index in range(9):
        bench.do(MemberAlive(member(f"n{index}")))
    assert len([node for node in bench.view.nodes.values() if node.holdings]) == 2
