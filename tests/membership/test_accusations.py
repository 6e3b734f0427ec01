"""Suspicion, evidence and verdict: who is asked, who refutes, when the dead are buried and when forgotten."""

import math

import pytest

from meshmoe.membership import (
    LAN,
    Connect,
    Disconnect,
    LocalHealth,
    MemberAlive,
    MemberDead,
    MemberForgotten,
    Send,
    Tick,
)
from meshmoe.membership.messages import MemberNews, MemberSync, MemberUpdate, Probe, ProbeAck
from tests.membership.support import (
    ALIVE,
    DEAD,
    GENERATION,
    ME,
    SUSPECT,
    A,
    B,
    Bench,
    C,
    D,
    E,
    acks_of,
    kinds,
    place,
    sent,
    word,
)


def test_whoever_hears_a_suspicion_asks_the_suspect_itself():
    bench = Bench(A, B)
    bench.news(word(B, SUSPECT, accusers=[A]))
    effects = bench.run(LAN.probe_window_s, answer=acks_of(A, B, incarnation=1))
    probes = sent(effects, Probe, B)
    assert probes
    # The buddy system: the probe carries the accusation.
    assert [(u.node, u.state) for u in probes[0].updates[:1]] == [(B, SUSPECT)]
    assert bench.state(B) is ALIVE
    assert bench.machine.members[B].incarnation == 1


def test_no_verdict_without_own_evidence():
    """B answers us, though without refuting; whatever others say, we do not bury it."""
    bench = Bench(A, B, C, D, E)
    bench.news(word(B, DEAD, accusers=[A, C, D, E]))
    assert bench.state(B) is SUSPECT
    bench.run(60, answer=acks_of(A, B, C, D, E))
    assert bench.state(B) is not DEAD


def test_an_unanswered_suspicion_ends_in_death_at_the_least_time_when_others_confirm():
    bench = Bench(A, B, C, D, E)
    started_s = bench.now
    bench.news(word(B, SUSPECT, accusers=[A, C, D, E]))
    while bench.state(B) is SUSPECT:
        bench.run(0.1, answer=acks_of(A, C, D, E))
    least_s = LAN.probe_window_s * (LAN.suspicion_mult + LAN.suspicion_log_mult * math.log10(6))
    assert bench.now - started_s == pytest.approx(least_s, abs=0.2)


def test_without_confirmation_it_takes_longest():
    bench = Bench(A, B, C, D, E)
    bench.news(word(B, SUSPECT, accusers=[A]))
    bench.run(6, answer=acks_of(A, C, D, E))
    assert bench.state(B) is SUSPECT  # two accusers: A and this node
    bench.run(9, answer=acks_of(A, C, D, E))
    assert bench.state(B) is DEAD


def test_own_lag_delays_the_verdict():
    bench = Bench(A, B, C, D, E)
    bench.news(word(B, SUSPECT, accusers=[A, C, D, E]))
    for _ in range(8):
        bench.do(LocalHealth(1.0))
        bench.run(1, answer=acks_of(A, C, D, E))
    assert bench.state(B) is SUSPECT


def test_a_refutation_is_believed_and_passed_on():
    bench = Bench(A, B)
    bench.news(word(B, SUSPECT))
    effects = bench.news(word(B, ALIVE, incarnation=1))
    assert kinds(effects) == [MemberAlive]
    told = [u for message in sent(bench.run(1), MemberNews) for u in message.updates if u.node == B]
    assert told[0].incarnation == 1


def test_accusations_of_this_node_are_refuted():
    bench = Bench(A)
    bench.news(word(ME, SUSPECT, generation=GENERATION, incarnation=3))
    assert bench.machine.incarnation == 4
    assert bench.machine.health(bench.now) == 1
    (first, *_) = sent(bench.run(1), MemberNews)
    assert first.updates[0] == MemberUpdate(ME, GENERATION, 4, ALIVE, place(9))
    bench.news(word(ME, DEAD, generation=GENERATION, incarnation=2))
    assert bench.machine.incarnation == 4


def test_a_suspect_that_probes_is_told_so():
    bench = Bench(A, B)
    bench.news(word(B, SUSPECT, accusers=[A]))
    effects = bench.hear(B, Probe(7, GENERATION, word(B)))
    assert [(u.node, u.state) for u in sent(effects, ProbeAck, B)[0].updates[:1]] == [(B, SUSPECT)]


def test_the_dead_are_probed_and_may_come_back():
    bench = Bench(A, B)
    bench.news(word(B, SUSPECT, accusers=[A]))
    bench.run(15, answer=acks_of(A))
    assert bench.state(B) is DEAD
    effects = bench.run(3, answer=acks_of(A, B, incarnation=1))
    assert bench.state(B) is ALIVE
    assert MemberAlive in kinds(effects)
    assert sent(effects, MemberSync, B), "a healed partition calls for comparing everything"


def test_the_dead_are_forgotten_at_last():
    bench = Bench(A, B)
    bench.news(word(B, SUSPECT, accusers=[A]))
    effects = bench.run(LAN.dead_retain_s + 30, answer=acks_of(A))
    assert kinds(effects).count(MemberDead) == 1
    assert kinds(effects)[-2:] == [Disconnect, MemberForgotten]
    assert B not in bench.machine.members


def test_after_a_pause_nobody_is_accused_on_stale_clocks():
    bench = Bench(A, B, C, D, E)
    bench.news(word(B, SUSPECT, accusers=[A, C, D]))
    bench.run(2.5, answer=acks_of(A, C, D, E))
    assert bench.state(B) is SUSPECT
    bench.now += 20  # SIGSTOP
    effects = bench.do(Tick())
    assert kinds(effects) == []
    assert len(sent(effects, MemberSync)) >= 2, "it asks what it has missed"
    bench.run(1, answer=acks_of(A, B, C, D, E, incarnation=1))
    assert all(bench.state(node) is ALIVE for node in (A, B, C, D, E))


@pytest.mark.parametrize("state", [SUSPECT, DEAD])
def test_an_accusation_of_a_later_life_brings_its_place_or_is_not_believed(state):
    """Seed 107677 of the simulator: the accused kept its earlier life's place for ever, and heard no answer again."""
    bench = Bench(A, B)
    placeless = MemberUpdate(B, 2, 0, state, None, [A])
    bench.news(placeless)
    assert bench.machine.members[B].generation == 1
    effects = bench.news(word(B, state, generation=2, port=7, accusers=[A]))
    assert Connect(B, place(7)) in effects
    assert bench.machine.members[B].endpoints == place(7)
    bench.news(placeless)
    assert bench.machine.members[B].endpoints == place(7)


def test_what_is_said_of_a_suspect_tells_where_it_listens():
    bench = Bench(A, B)
    bench.news(word(B, SUSPECT, port=1, accusers=[A]))
    synced = bench.hear(A, MemberSync([word(A)], True))
    told = [u for e in synced if isinstance(e, Send) and isinstance(e.message, MemberSync) for u in e.message.members]
    assert {update.node: update.endpoints for update in told}[B] == place(1)
