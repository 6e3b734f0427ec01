"""One machine, driven by hand: what it answers, and when."""

import dataclasses
import math
from random import Random

import pytest

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.membership import (
    LAN,
    Connect,
    Disconnect,
    Doubted,
    Learned,
    Leave,
    LeaveFinished,
    LocalHealth,
    MemberAlive,
    MemberDead,
    MemberForgotten,
    MemberLeft,
    Membership,
    MemberState,
    MemberSuspect,
    NameConflict,
    Received,
    Send,
    Tick,
)
from meshmoe.membership.messages import (
    MemberNews,
    MemberSync,
    MemberUpdate,
    Probe,
    ProbeAck,
    ProbeNack,
    ProbeRequest,
)

ALIVE, SUSPECT, DEAD, LEFT = MemberState
ME, GENERATION = NodeId("me"), 1000
A, B, C, D, E = (NodeId(name) for name in "abcde")


def place(port):
    return Endpoints("10.0.0.1", port)


def word(node, state=ALIVE, *, generation=1, incarnation=0, port=1, accusers=()):
    return MemberUpdate(node, generation, incarnation, state, place(port), list(accusers))


class Bench:
    """A machine and its clock."""

    def __init__(self, *members, config=LAN):
        self.now = 50.0
        self.machine = Membership(config, ME, GENERATION, place(9), Random(1), self.now)
        for member in members:
            self.learn(member)

    def do(self, event):
        return self.machine.handle(event, self.now)

    def learn(self, node, generation=1, port=1):
        return self.do(Learned(NodeId(node), generation, place(port)))

    def hear(self, sender, message, generation=1):
        return self.do(Received(NodeId(sender), generation, message))

    def news(self, *updates, sender=A):
        return self.hear(sender, MemberNews(list(updates)))

    def run(self, duration_s, *, answer=lambda peer, message: None):
        """Tick exactly; ``answer`` makes peers' immediate replies."""
        effects, end_s = [], self.now + duration_s
        while self.machine.next_deadline() <= end_s:
            self.now = max(self.now, self.machine.next_deadline())
            pending = self.do(Tick())
            while pending:
                effect = pending.pop(0)
                effects.append(effect)
                reply = answer(effect.peer, effect.message) if isinstance(effect, Send) else None
                if reply is not None:
                    generation = self.machine.members[effect.peer].generation
                    pending += self.hear(effect.peer, reply, generation)
        self.now = end_s
        return effects

    def state(self, node):
        return self.machine.members[node].state


def sent(effects, kind, peer=None):
    return [
        e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind) and peer in (None, e.peer)
    ]


def kinds(effects):
    return [type(effect) for effect in effects if not isinstance(effect, Send)]


def acks_of(*nodes, incarnation=0):
    """Peers that answer probes."""
    return lambda peer, m: ProbeAck(m.id, incarnation, m.attempt) if isinstance(m, Probe) and peer in nodes else None


# -- meeting ------------------------------------------------------------


def test_a_member_is_connected_before_anything_is_sent_to_it():
    effects = Bench().learn(A, port=5)
    assert effects[0] == Connect(A, place(5))
    assert isinstance(effects[1], MemberAlive)
    assert isinstance(effects[2].message, MemberSync)
    assert effects[2].message.wants_reply


def test_a_stranger_that_probes_is_answered():
    bench = Bench()
    effects = bench.hear(A, Probe(7, GENERATION, word(A, port=5), 2))
    assert kinds(effects) == [Connect, MemberAlive]
    assert sent(effects, ProbeAck, A) == [ProbeAck(7, 0, 2, sent(effects, ProbeAck)[0].updates)]


def test_a_stranger_that_says_anything_else_is_not():
    bench = Bench()
    assert bench.hear(A, ProbeRequest(7, B, 1, 500)) == []
    assert bench.hear(A, MemberSync([], wants_reply=True)) == []


def test_a_probe_must_come_from_its_origin():
    assert Bench().hear(A, Probe(7, GENERATION, word(B))) == []


def test_a_probe_for_an_earlier_life_is_not_acknowledged():
    effects = Bench(A).hear(A, Probe(7, GENERATION - 1, word(A)))
    assert not sent(effects, ProbeAck)
    assert sent(effects, MemberNews, A)[0].updates[0].generation == GENERATION


def test_members_heard_of_are_connected_and_passed_on():
    bench = Bench(A)
    effects = bench.news(word(B, port=3))
    assert effects[0] == Connect(B, place(3))
    assert any(u.node == B for message in sent(bench.run(1), MemberNews) for u in message.updates)


def test_a_newcomer_does_not_repeat_the_list_it_was_given():
    bench = Bench(A)
    bench.hear(A, MemberSync([word(f"n{i}") for i in range(10)]))
    assert bench.machine.size == 12
    everybody = acks_of(A, *(f"n{i}" for i in range(10)))
    told = {u.node for message in sent(bench.run(3, answer=everybody), MemberNews) for u in message.updates}
    assert told <= {ME, A}


def test_a_sync_is_answered_with_everything_known():
    bench = Bench(A, B)
    (reply,) = sent(bench.hear(A, MemberSync([], wants_reply=True)), MemberSync, A)
    assert {update.node for update in reply.members} == {ME, A, B}
    assert not reply.wants_reply


# -- probing ------------------------------------------------------------


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


# -- relaying ------------------------------------------------------------


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


# -- suspicion ------------------------------------------------------------


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


# -- lives ------------------------------------------------------------


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


# -- time ------------------------------------------------------------


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


# -- bounds ------------------------------------------------------------


def test_the_table_is_bounded_and_prefers_the_living():
    bench = Bench(config=dataclasses.replace(LAN, members_max=4))
    for node in (A, B, C):
        bench.learn(node)
    bench.news(word(D))
    assert set(bench.machine.members) == {A, B, C}
    bench.news(word(B, LEFT))
    assert kinds(bench.news(word(D))) == [MemberForgotten, Connect, MemberAlive]
    assert set(bench.machine.members) == {A, C, D}


def test_the_same_seed_makes_the_same_effects():
    def history():
        bench = Bench(A, B, C)
        return bench.run(30, answer=acks_of(A, B))

    assert history() == history()


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
