"""Deadlines from what was measured, and distrust that doubles."""

from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.ids import NodeId
from meshmoe.node.peer_times import DEADLINE_S_MIN, DISTRUST_S_MAX, DISTRUST_S_MIN, PeerTimes

A, B = NodeId("a"), NodeId("b")


def test_unknown_peers_get_the_longest_deadline_and_trust():
    times = PeerTimes()
    assert times.deadline_s(A, 2.0) == 2.0
    assert not times.distrusted(A, 0.0)


@given(st.lists(st.floats(0.0001, 5.0), min_size=1, max_size=50), st.floats(0.5, 10.0))
def test_deadlines_lie_between_their_bounds(took_s, longest_s):
    times = PeerTimes()
    for one_s in took_s:
        times.answered(A, one_s)
    assert min(DEADLINE_S_MIN, longest_s) <= times.deadline_s(A, longest_s) <= longest_s


def test_a_steady_peer_gets_a_short_deadline_and_a_slow_one_a_longer_one():
    times = PeerTimes()
    for _ in range(50):
        times.answered(A, 0.002)
        times.answered(B, 0.4)
    assert times.deadline_s(A, 2.0) == DEADLINE_S_MIN
    assert 0.8 <= times.deadline_s(B, 2.0) < 1.0


def test_distrust_doubles_ends_and_is_forgiven():
    times = PeerTimes()
    times.missed(A, 0.0)
    times.missed(A, 0.5)  # out at the same time as the first
    assert times.distrusted(A, DISTRUST_S_MIN - 0.01)
    assert not times.distrusted(A, DISTRUST_S_MIN)
    now_s = DISTRUST_S_MIN
    for _ in range(10):
        times.missed(A, now_s)
        now_s += DISTRUST_S_MAX
    times.missed(A, now_s)
    assert times.distrusted(A, now_s + DISTRUST_S_MAX - 0.01)
    assert not times.distrusted(A, now_s + DISTRUST_S_MAX)
    times.missed(A, now_s + DISTRUST_S_MAX)
    times.answered(A, 0.01)
    assert not times.distrusted(A, now_s + DISTRUST_S_MAX)
