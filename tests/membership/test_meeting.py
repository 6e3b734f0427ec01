"""Who becomes a member, who is answered, and what newcomers and old members tell one another; the table's bounds."""

import dataclasses

from meshmoe.membership import LAN, Connect, MemberAlive, MemberForgotten
from meshmoe.membership.messages import MemberNews, MemberSync, Probe, ProbeAck, ProbeRequest
from tests.membership.support import GENERATION, LEFT, ME, A, B, Bench, C, D, acks_of, kinds, place, sent, word


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


def test_the_table_is_bounded_and_prefers_the_living():
    bench = Bench(config=dataclasses.replace(LAN, members_max=4))
    for node in (A, B, C):
        bench.learn(node)
    bench.news(word(D))
    assert set(bench.machine.members) == {A, B, C}
    bench.news(word(B, LEFT))
    assert kinds(bench.news(word(D))) == [MemberForgotten, Connect, MemberAlive]
    assert set(bench.machine.members) == {A, C, D}
