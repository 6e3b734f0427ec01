"""One gossip machine, driven by hand."""

from dataclasses import replace
from random import Random

import pytest

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip import DEFAULT, Claims, Gossip, Holdings, LaterLife, Links, Load, NodeInfo, Publish, Withdraw
from meshmoe.gossip.messages import Entry, GossipDelta, GossipDigest, GossipPush, NodeDelta, NodeDigest, message_bytes
from meshmoe.gossip.values import pack
from meshmoe.membership import (
    Member,
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLeft,
    MemberState,
    MemberSuspect,
    Received,
    Send,
    Tick,
)
from tests.membership.virtual import wire_bytes

HERE = Endpoints("10.0.0.1", 7000)
ME, GENERATION = NodeId("me"), 1000
A, B, C = (NodeId(name) for name in "abc")


def member(node, state=MemberState.ALIVE, generation=1):
    return Member(NodeId(node), generation, 0, state, HERE, 0.0)


def holdings(node, *indices, version=1, after=0, upto=None, generation=1, layer=0):
    entry = Entry(f"holdings/{layer}", version, pack(Holdings.of(layer, indices)))
    return NodeDelta(node, generation, 0, after, upto or version, [entry])


class Bench:
    """A machine and its clock."""

    def __init__(self, *peers, config=DEFAULT):
        self.now = 50.0
        self.machine = Gossip(config, ME, GENERATION, Random(1), self.now)
        for peer in peers:
            self.do(MemberAlive(member(peer)))

    @property
    def view(self):
        return self.machine.view

    def do(self, event):
        return self.machine.handle(event, self.now)

    def hear(self, sender, message):
        return self.do(Received(NodeId(sender), 1, message))

    def run(self, duration_s):
        effects, end_s = [], self.now + duration_s
        while self.machine.next_deadline() <= end_s:
            self.now = max(self.now, self.machine.next_deadline())
            effects += self.do(Tick())
        self.now = end_s
        return effects


def sent(effects, kind=GossipPush, peer=None):
    return [
        e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind) and peer in (None, e.peer)
    ]


def keys(messages):
    return [entry.key for message in messages for delta in message.deltas for entry in delta.entries]


# -- own entries -----------------------------------------------------


def test_own_entries_are_in_the_own_view_at_once():
    bench = Bench()
    assert bench.do(Publish((Load(5, 6), Holdings.of(1, [2])))) == []
    assert bench.view.nodes[ME].load == Load(5, 6)
    assert bench.view.holders(ExpertId(1, 2)) == (ME,)


def test_a_change_sends_only_what_changed_twice():
    bench = Bench(A, B)
    bench.do(Publish((Load(1, 1), Links([]))))
    bench.run(5)
    bench.do(Publish((Load(2, 2),)))
    pushes = sent(bench.run(5), GossipPush, A)
    assert keys(pushes) == ["load", "load"]
    assert not pushes[0].relay, "all are told directly"


def test_equal_values_cost_nothing():
    bench = Bench(A)
    bench.do(Publish((Load(1, 1),)))
    bench.run(5)
    bench.do(Publish((Load(1, 1),)))
    assert sent(bench.run(5)) == []


def test_holdings_are_urgent_and_load_is_not():
    bench = Bench(A, B)
    assert sent(bench.do(Publish((Load(1, 1),)))) == []
    for values in ((Holdings.of(0, [1]),), (Claims.of(0, {1: 1}),), (NodeInfo("leaving", HERE, "x"),)):
        effects = bench.do(Publish(values))
        assert {e.peer for e in effects} == {A, B}
        assert all(message.urgent for message in sent(effects))
    assert sent(bench.do(Publish((Holdings.of(0, [2]),), urgent=False))) == []


def test_withdrawn_entries_leave_tombstones_that_are_collected():
    bench = Bench(A)
    bench.do(Publish((Load(1, 1), Holdings.of(0, [1]))))
    bench.do(Withdraw(("load", "load", "links")))
    assert bench.view.nodes[ME].load is None
    tombstones = [e for m in sent(bench.run(1)) for d in m.deltas for e in d.entries if e.value is None]
    assert {entry.key for entry in tombstones} == {"load"}
    bench.run(DEFAULT.tombstone_s + 1)
    bench.do(Publish((Holdings.of(0, [2]),)))
    (push, *_) = sent(bench.run(1))
    assert push.deltas[0].floor == tombstones[0].version


def test_the_holder_map_seen_is_published():
    bench = Bench(A)
    bench.do(Publish((Holdings.of(0, [1]),)))
    bench.run(DEFAULT.agreement_s + 1)
    assert bench.view.nodes[ME].agreement == bench.view.holder_digest()
    bench.hear(A, GossipPush([holdings(A, 1, 2)]))
    assert bench.view.nodes[ME].agreement != bench.view.holder_digest()
    bench.run(DEFAULT.agreement_s + 1)
    assert bench.view.nodes[ME].agreement == bench.view.holder_digest()


def test_an_earlier_run_of_this_generation_is_outlived():
    """Others have entries of ours with higher versions than we ever wrote."""
    bench = Bench(A)
    bench.do(Publish((Holdings.of(0, [1]), Load(1, 1))))
    effects = bench.hear(A, GossipPush([holdings(ME, 9, version=40, after=39, generation=GENERATION)]))
    assert bench.view.holders(ExpertId(0, 1)) == (ME,)
    assert bench.view.holders(ExpertId(0, 9)) == ()
    (push,) = sent(effects, GossipPush, A)
    assert sorted(keys([push])) == ["holdings/0", "load"]
    assert all(entry.version > 40 for entry in push.deltas[0].entries)


def test_digests_too_tell_of_an_earlier_run():
    bench = Bench(A)
    bench.do(Publish((Load(1, 1),)))
    effects = bench.hear(A, GossipDigest([NodeDigest(ME, GENERATION, 17)]))
    assert sent(effects, GossipPush, A)[0].deltas[0].upto == 18


def test_a_later_life_of_this_name_is_reported():
    effects = Bench(A).hear(A, GossipPush([holdings(ME, 1, generation=GENERATION + 1)]))
    assert LaterLife(GENERATION + 1) in effects


def test_entries_of_an_earlier_life_of_this_node_are_ignored():
    bench = Bench(A)
    assert bench.hear(A, GossipPush([holdings(ME, 1, generation=GENERATION - 1)])) == []
    assert bench.view.holders(ExpertId(0, 1)) == ()


# -- others' entries -------------------------------------------------


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


# -- spreading -------------------------------------------------------


def test_a_gap_is_asked_for_once_an_interval():
    bench = Bench(A)
    push = GossipPush([holdings(A, 1, version=5, after=4)])
    (ask,) = sent(bench.hear(A, push), GossipDelta, A)
    assert ask.wants == [NodeDigest(A, 1, 0, 0)]
    assert sent(bench.hear(A, push), GossipDelta) == []
    assert bench.view.holders(ExpertId(0, 1)) == (A,), "what came is believed at once"


def test_what_is_asked_for_is_sent():
    bench = Bench(A, B)
    bench.do(Publish((Load(1, 1),)))
    bench.hear(B, GossipPush([holdings(B, 1)]))
    effects = bench.hear(
        A, GossipDelta(wants=[NodeDigest(ME, GENERATION, 0), NodeDigest(B, 1, 0), NodeDigest(C, 1, 0)])
    )
    assert {(d.node, d.upto) for d in sent(effects, GossipPush, A)[0].deltas} == {(ME, 1), (B, 1)}


def test_digests_are_answered_both_ways():
    bench = Bench(A, B)
    bench.do(Publish((Load(1, 1),)))
    bench.hear(B, GossipPush([holdings(B, 1)]))
    effects = bench.hear(A, GossipDigest([NodeDigest(A, 1, 3), NodeDigest(B, 1, 1)]))
    (answer,) = sent(effects, GossipDelta, A)
    assert [delta.node for delta in answer.deltas] == [ME]
    assert answer.wants == [NodeDigest(A, 1, 0)]


def test_who_has_everything_gets_no_answer():
    bench = Bench(A)
    assert bench.hear(A, GossipDigest([NodeDigest(ME, GENERATION, 0)])) == []


def test_a_range_of_names_is_judged_alone():
    bench = Bench(A, B, C)
    for node in (A, B, C):
        bench.hear(node, GossipPush([holdings(node, 1)]))
    (answer,) = sent(bench.hear(C, GossipDigest([], first="b", until="c")), GossipDelta)
    assert [delta.node for delta in answer.deltas] == [B]


def test_the_dead_are_not_spoken_of():
    bench = Bench(A, B)
    bench.hear(B, GossipPush([holdings(B, 1)]))
    bench.do(MemberDead(member(B, MemberState.DEAD)))
    assert sent(bench.hear(A, GossipDigest([])), GossipDelta) == []
    assert sent(bench.hear(A, GossipDelta(wants=[NodeDigest(B, 1, 0)]))) == []


def test_strangers_are_not_answered():
    bench = Bench(A)
    bench.do(Publish((Load(1, 1),)))
    assert bench.hear(C, GossipDigest([])) == []
    assert bench.hear(C, GossipDelta(wants=[NodeDigest(ME, GENERATION, 0)])) == []


MANY = [NodeId(f"n{index:02d}") for index in range(40)]


def test_in_a_large_mesh_news_is_passed_on_once():
    bench = Bench(*MANY)
    bench.run(3)
    bench.hear(MANY[0], GossipPush([holdings(MANY[0], 1)]))
    pushes = [e for e in bench.run(3) if isinstance(e, Send) and isinstance(e.message, GossipPush)]
    passed_on = [e for e in pushes if any(delta.node == MANY[0] for delta in e.message.deltas)]
    assert len(passed_on) in (DEFAULT.fanout - 1, DEFAULT.fanout)  # not to its owner, should chance pick it
    assert all(e.message.relay for e in passed_on)
    assert MANY[0] not in {e.peer for e in passed_on}
    assert not sent(bench.hear(MANY[1], GossipPush([holdings(MANY[0], 1)])))
    assert MANY[0] not in {d.node for m in sent(bench.run(3)) for d in m.deltas}


def test_urgent_news_is_passed_on_at_once():
    bench = Bench(*MANY)
    bench.run(3)
    effects = bench.hear(MANY[0], GossipPush([holdings(MANY[0], 1)], urgent=True))
    assert len(sent(effects)) >= DEFAULT.fanout - 1
    assert sent(bench.hear(MANY[1], GossipPush([holdings(MANY[0], 1)], urgent=True))) == []


def test_news_with_a_gap_before_it_is_passed_on_as_it_came():
    bench = Bench(*MANY)
    bench.run(3)
    delta = holdings(MANY[0], 1, version=7, after=6)
    bench.hear(MANY[1], GossipPush([delta]))
    assert sum(delta in m.deltas for m in sent(bench.run(0.6))) >= DEFAULT.fanout - 1


def test_what_a_sync_brought_is_old_news():
    bench = Bench(*MANY)
    bench.run(3)
    bench.hear(MANY[1], GossipDelta([holdings(MANY[0], 1)]))
    assert MANY[0] not in {d.node for m in sent(bench.run(3)) for d in m.deltas}


def test_an_urgent_change_reaches_a_logarithmic_number_of_many():
    bench = Bench(*MANY)
    effects = bench.do(Publish((Holdings.of(0, [1]),)))
    assert len({e.peer for e in effects}) == DEFAULT.urgent_peers(41) == 11


# -- bounds ----------------------------------------------------------


def test_messages_are_cut_and_budgets_kept():
    config = replace(DEFAULT, budget_base_bytes_per_s=4000.0, budget_node_bytes_per_s=0.0, message_bytes=2000)
    bench = Bench(A, config=config)
    bench.do(Publish(tuple(Holdings.of(layer, range(800)) for layer in range(200)), urgent=False))
    effects = bench.run(20)
    messages = [e.message for e in effects if isinstance(e, Send)]
    assert max(message_bytes(message) for message in messages) <= 2000 + 200
    total = sum(map(wire_bytes, messages))
    assert total <= 4000 * (20 + config.burst_s)
    assert bench.machine.sent_bytes >= total
    assert len(set(keys(sent(effects)))) == 201


def test_urgent_changes_overdraw():
    config = replace(DEFAULT, budget_base_bytes_per_s=100.0, budget_node_bytes_per_s=0.0, burst_s=1.0)
    bench = Bench(A, config=config)
    assert sent(bench.do(Publish((Holdings.of(0, range(800)),))))
    bench.do(Publish((Load(1, 1),)))
    assert bench.run(5) == [], "and the rest waits until the debt is paid"


def test_a_truncated_sync_is_soon_repeated():
    bench = Bench(A)
    bench.run(3)
    bench.hear(A, GossipDelta([holdings(A, 1)], more=True))
    assert bench.machine.next_deadline() <= bench.now + DEFAULT.interval_s


def test_sizes_are_never_underestimated():
    deltas = [holdings(A, *range(index * 40), layer=index, generation=2**62) for index in range(12)]
    digests = [NodeDigest("n" * 63, 2**62, 2**52, 2**52)] * 9
    for message in (
        GossipPush(deltas, relay=False, urgent=True),
        GossipDigest(digests, "n" * 63, "n" * 63),
        GossipDelta(deltas, digests, more=True),
    ):
        assert wire_bytes(message) <= message_bytes(message)
