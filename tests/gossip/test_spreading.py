"""How news spreads, within which bounds: gaps, digests, what is passed on, message sizes and budgets."""

from dataclasses import replace

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip import DEFAULT, Holdings, Load, Publish
from meshmoe.gossip.messages import GossipDelta, GossipDigest, GossipPush, NodeDigest, message_bytes
from meshmoe.membership import MemberDead, MemberState, Send
from tests.gossip.support import GENERATION, ME, A, B, Bench, C, holdings, keys, member, sent
from tests.membership.virtual import wire_bytes


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
