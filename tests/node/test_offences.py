"""For how long a peer that sends nonsense is not listened to."""

from meshmoe.core.ids import NodeId
from meshmoe.node.offences import BURST, FIRST_BAN_S, LONGEST_BAN_S, Offences

A, B = NodeId("a"), NodeId("b")


def until_banned(offences: Offences, now_s: float) -> float:
    for _ in range(1000):
        ban_s = offences.note(A, "bad_message", now_s)
        if ban_s is not None:
            return ban_s
    raise AssertionError("never")


def test_a_few_are_let_pass_and_a_flood_is_not():
    offences = Offences()
    assert all(offences.note(A, "bad_message", 0.0) is None for _ in range(int(BURST)))
    assert not offences.is_banned(A, 0.0)
    assert offences.note(A, "bad_call", 0.0) == FIRST_BAN_S
    assert offences.is_banned(A, FIRST_BAN_S - 1) and not offences.is_banned(A, FIRST_BAN_S)
    assert not offences.is_banned(B, 0.0)
    assert offences.by_peer() == {"a": {"bad_message": int(BURST), "bad_call": 1}}


def test_one_now_and_then_is_never_enough():
    offences = Offences()
    assert all(offences.note(A, "bad_message", 2.0 * i) is None for i in range(500))


def test_bans_grow_and_are_forgiven():
    offences, now_s, bans = Offences(), 0.0, []
    for _ in range(7):
        bans.append(until_banned(offences, now_s))
        now_s += bans[-1]
    assert bans[:3] == [30.0, 60.0, 120.0]
    assert bans[-1] == LONGEST_BAN_S
    assert until_banned(offences, now_s + 4000) == FIRST_BAN_S


def test_many_names_cost_little():
    offences = Offences()
    for i in range(5000):
        offences.note(NodeId(f"n{i}"), "bad_message", 0.0)
    assert len(offences.by_peer()) <= 1024
