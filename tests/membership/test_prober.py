"""Probes: retries, relays and their answers, round trips, and what own lateness does to them."""

import pytest

from meshmoe.membership import LAN, Doubted, LocalHealth, MemberSuspect, Tick
from meshmoe.membership.messages import Probe, ProbeAck, ProbeNack, ProbeRequest
from tests.membership.support import ALIVE, SUSPECT, A, B, Bench, C, D, E, acks_of, kinds, sent


def test_answered_probes_disturb_nobody_and_measure():
    bench = Bench(A, B)
    effects = bench.run(20, answer=acks_of(A, B))
    assert kinds(effects) == []
    assert len(sent(effects, Probe)) == pytest.approx(20 / LAN.probe_interval_s, abs=1)
    assert bench.machine.rtt(A).samples + bench.machine.rtt(B).samples == len(sent(effects, Probe))
    assert bench.machine.rtt(A).min_ms == 0


def test_the_round_trip_is_that_of_the_attempt_which_was_answered():
    bench = Bench(A)
    probe = first_probe(bench, A)
    started_s = bench.now
    bench.run(LAN.probe_retry_s * 1.5)
    bench.hear(A, ProbeAck(probe.id, 0, 1))
    estimate = bench.machine.rtt(A)
    assert estimate.min_ms == pytest.approx(LAN.probe_retry_s * 500)
    assert bench.now - started_s > LAN.probe_retry_s


def first_probe(bench, target):
    """Run until the target is probed; others answer."""
    others = acks_of(*(set(bench.machine.members) - {target}))
    while True:
        step_s = bench.machine.next_deadline() - bench.now
        for message in sent(bench.run(step_s, answer=others), Probe, target):
            return message


def test_silence_brings_retries_then_relays_then_suspicion():
    bench = Bench(A, B, C, D, E)
    probe = first_probe(bench, A)
    effects = bench.run(LAN.probe_timeout_s * 0.9, answer=acks_of(B, C, D, E))
    assert [m.attempt for m in sent(effects, Probe, A)] == [1, 2]
    assert not sent(effects, ProbeRequest)
    effects = bench.run(LAN.probe_window_s, answer=acks_of(B, C, D, E))
    requests = sent(effects, ProbeRequest)
    assert len(requests) == LAN.indirect_probes
    assert {(m.id, m.target, m.generation) for m in requests} == {(probe.id, A, 1)}
    assert MemberSuspect in kinds(effects)
    assert bench.state(A) is SUSPECT


def test_an_ack_by_a_relay_is_as_good():
    bench = Bench(A, B, C, D, E)
    probe = first_probe(bench, A)
    others = acks_of(B, C, D, E)

    def relayed(peer, message):
        return ProbeAck(message.id, 0) if isinstance(message, ProbeRequest) else others(peer, message)

    bench.run(LAN.probe_window_s, answer=relayed)
    assert probe.id is not None
    assert bench.state(A) is ALIVE
    assert bench.machine.rtt(A) is None  # a relay's answer measures nothing


def test_an_ack_by_somebody_else_is_not():
    bench = Bench(A, B)
    probe = first_probe(bench, A)
    bench.hear(B, ProbeAck(probe.id + 1, 0))
    bench.hear(C, ProbeAck(probe.id, 0))
    bench.hear(A, ProbeAck(probe.id, 0), generation=2)
    bench.run(LAN.probe_window_s * 2, answer=acks_of(B))
    assert bench.state(A) is SUSPECT


def test_a_late_ack_still_proves_life():
    bench = Bench(A, B)
    probe = first_probe(bench, A)
    bench.run(LAN.probe_window_s * 1.2, answer=acks_of(B))
    assert bench.state(A) is SUSPECT
    bench.hear(A, ProbeAck(probe.id, 1))
    assert bench.state(A) is ALIVE


def test_missing_nacks_worsen_local_health():
    def silent_relays(peer, message):
        return None

    def nacking(peer, message):
        return ProbeNack(message.id) if isinstance(message, ProbeRequest) else acks_of(B, C, D)(peer, message)

    sick, well = Bench(A, B, C, D), Bench(A, B, C, D)
    first_probe(sick, A)
    first_probe(well, A)
    sick.run(LAN.probe_window_s, answer=silent_relays)
    well.run(LAN.probe_window_s, answer=nacking)
    assert sick.machine.health(sick.now) >= LAN.indirect_probes
    assert well.machine.health(well.now) == 0


def test_doubt_probes_at_once():
    bench = Bench(A)
    assert sent(bench.do(Doubted(A)), Probe, A)
    assert bench.do(Doubted(B)) == []


def test_a_relay_probes_and_passes_the_answer_on():
    bench = Bench(A, B)
    (probe,) = sent(bench.hear(A, ProbeRequest(7, B, 1, 700)), Probe, B)
    effects = bench.hear(B, ProbeAck(probe.id, 4))
    assert [(m.id, m.incarnation) for m in sent(effects, ProbeAck, A)] == [(7, 4)]


def test_a_relay_nacks_in_time_and_may_still_ack():
    bench = Bench(A, B)
    (probe,) = sent(bench.hear(A, ProbeRequest(7, B, 1, 700)), Probe, B)
    assert not sent(bench.run(0.5, answer=acks_of(A)), ProbeNack)
    effects = bench.run(0.15, answer=acks_of(A))
    assert [m.id for m in sent(effects, ProbeNack, A)] == [7]
    assert sent(bench.hear(B, ProbeAck(probe.id, 0)), ProbeAck, A)
    assert not sent(bench.hear(B, ProbeAck(probe.id, 0)), ProbeAck, A)


@pytest.mark.parametrize(("target", "generation"), [(C, 1), (B, 2)])
def test_a_relay_that_does_not_know_the_target_nacks_at_once(target, generation):
    bench = Bench(A, B)
    effects = bench.hear(A, ProbeRequest(7, target, generation, 700))
    assert not sent(effects, Probe)
    assert [m.id for m in sent(effects, ProbeNack, A)] == [7]


def test_a_late_loop_slows_its_probes():
    bench = Bench(A)
    bench.run(5, answer=acks_of(A))
    bench.do(LocalHealth(0.1))
    assert bench.machine.health(bench.now) == 0
    bench.do(LocalHealth(0.8))
    assert bench.machine.health(bench.now) == 3
    bench.run(10, answer=acks_of(A))
    assert bench.machine.health(bench.now) == 0


def test_an_overdue_timer_counts_as_lag():
    bench = Bench(A)
    bench.run(5, answer=acks_of(A))
    bench.now = bench.machine.next_deadline() + 0.6
    bench.do(Tick())
    assert bench.machine.health(bench.now) == 2


def test_the_same_seed_makes_the_same_effects():
    def history():
        bench = Bench(A, B, C)
        return bench.run(30, answer=acks_of(A, B))

    assert history() == history()
