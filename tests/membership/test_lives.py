"""Later and earlier lives of a name, farewells, and two nodes that live under one name."""

import math

from meshmoe.membership import (
    LAN,
    Connect,
    Disconnect,
    Leave,
    LeaveFinished,
    MemberAlive,
    MemberDead,
    MemberLeft,
    MemberState,
    NameConflict,
)
from meshmoe.membership.messages import MemberNews, Probe
from tests.membership.support import (
    ALIVE,
    DEAD,
    GENERATION,
    LEFT,
    ME,
    A,
    B,
    Bench,
    C,
    acks_of,
    kinds,
    place,
    sent,
    word,
)


def test_a_later_life_replaces_the_earlier_at_once():
    bench = Bench(A, B)
    effects = bench.news(word(B, generation=2, port=4))
    assert kinds(effects) == [MemberDead, Connect, MemberAlive]
    assert [m.updates[0].generation for m in sent(effects, MemberNews, B)] == [2]  # the earlier life hears why
    assert bench.machine.size == 3


def test_news_of_an_earlier_life_changes_nothing():
    bench = Bench(A)
    bench.learn(B, generation=2)
    for state in MemberState:
        assert not kinds(bench.news(word(B, state, generation=1, incarnation=9)))
    assert bench.state(B) is ALIVE


def test_a_farewell_is_not_a_death():
    bench = Bench(A, B)
    effects = bench.news(word(B, LEFT))
    assert kinds(effects) == [MemberLeft, Disconnect]
    assert bench.machine.size == 2
    assert not kinds(bench.news(word(B, ALIVE, incarnation=5)))
    assert kinds(bench.news(word(B, ALIVE, generation=2))) == [Connect, MemberAlive]


def test_leaving_tells_everybody_and_ends():
    bench = Bench(A, B)
    effects = [*bench.do(Leave()), *bench.run(3)]
    for peer in (A, B):
        farewells = sent(effects, MemberNews, peer)
        assert len(farewells) == LAN.leave_repeats
        assert {(m.updates[0].node, m.updates[0].state) for m in farewells} == {(ME, LEFT)}
    assert effects[-1] == LeaveFinished()
    assert bench.machine.next_deadline() == math.inf
    assert bench.learn(C) == []


def test_a_leaving_node_does_not_refute():
    bench = Bench(A)
    bench.do(Leave())
    bench.news(word(ME, DEAD, generation=GENERATION))
    assert bench.machine.incarnation == 0


def test_a_later_life_of_this_name_silences():
    bench = Bench(A)
    (conflict,) = bench.news(word(ME, generation=GENERATION + 1, port=77))
    assert conflict.yields
    assert (conflict.generation, conflict.other.generation) == (GENERATION, GENERATION + 1)
    assert conflict.other.endpoints == place(77)
    assert bench.run(10) == []
    assert bench.machine.next_deadline() == math.inf


def test_an_earlier_life_that_still_speaks_is_reported_once():
    bench = Bench(A)
    origin = word(ME, generation=GENERATION - 1, port=88)
    effects = bench.hear(ME, Probe(7, 1, origin), generation=GENERATION - 1)
    assert [(e.generation, e.yields) for e in effects if isinstance(e, NameConflict)] == [(GENERATION - 1, False)]
    assert bench.hear(ME, Probe(7, 1, origin), generation=GENERATION - 1) == []


def test_third_parties_report_two_living_nodes_but_not_messages_in_flight():
    bench = Bench(A)
    bench.learn(B, generation=2)
    old = Probe(7, GENERATION, word(B, generation=1))
    assert bench.hear(B, old, generation=1) == []
    bench.run(LAN.conflict_grace_s + 1, answer=acks_of(A, B))
    assert kinds(bench.hear(B, old, generation=1)) == [NameConflict]
    assert bench.hear(B, old, generation=1) == []
