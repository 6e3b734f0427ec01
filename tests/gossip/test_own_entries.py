"""A node's own entries: what a change sends and when, tombstones, and earlier or later lives of its name."""

from meshmoe.core.ids import ExpertId
from meshmoe.gossip import DEFAULT, Claims, Holdings, LaterLife, Links, Load, NodeInfo, Publish, Withdraw
from meshmoe.gossip.messages import GossipDigest, GossipPush, NodeDigest
from tests.gossip.support import GENERATION, HERE, ME, A, B, Bench, holdings, keys, sent


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
