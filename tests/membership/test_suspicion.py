"""The timeout formula, as a table; who counts as a confirmation."""

import pytest

from meshmoe.core.ids import NodeId
from meshmoe.membership.config import LAN
from meshmoe.membership.suspicion import Suspicion, least_s, timeout_s

A, B, C, D, E = (NodeId(name) for name in "abcde")


@pytest.mark.parametrize(
    ("confirmations", "wanted", "expected_s"),
    [
        # 30 - 28 * log(c + 1) / log(k + 1): the values of memberlist's suspicion_test.go.
        (0, 3, 30.0),
        (1, 3, 16.0),
        (2, 3, 7.810),
        (3, 3, 2.0),
        (4, 3, 2.0),
        (0, 0, 2.0),  # nobody could confirm
        (0, -1, 2.0),
    ],
)
def test_confirmations_shorten_the_time(confirmations, wanted, expected_s):
    assert timeout_s(confirmations, wanted, least=2.0, most=30.0) == pytest.approx(expected_s, abs=1e-3)


@pytest.mark.parametrize(("n", "expected_s"), [(1, 3.0), (10, 4.0), (100, 5.0), (1000, 6.0)])
def test_least_time_grows_with_the_mesh(n, expected_s):
    assert least_s(LAN, n) == pytest.approx(expected_s)


def test_accusers_count_once():
    case = Suspicion(0.0, [A], limit=4)
    assert not case.accuse([A])
    assert case.accuse([B])
    assert not case.accuse([A, B])
    assert case.accusers == [A, B]


def test_accusers_are_bounded():
    case = Suspicion(0.0, [A, B, C, D, E], limit=4)
    assert case.accusers == [A, B, C, D]
    assert not case.accuse([E])


def test_deadline_moves_from_most_to_least():
    least = least_s(LAN, 10)
    case = Suspicion(100.0, [A], limit=4)
    deadlines = [case.deadline_s(LAN, 10, scale=1)]
    for accuser in (B, C, D):
        case.accuse([accuser])
        deadlines.append(case.deadline_s(LAN, 10, scale=1))
    assert deadlines[0] == 100 + LAN.suspicion_max_mult * least
    assert deadlines[-1] == 100 + least
    assert deadlines == sorted(deadlines, reverse=True)


def test_own_lag_stretches_the_time():
    case = Suspicion(0.0, [A], limit=4)
    assert case.deadline_s(LAN, 10, scale=3) == 3 * case.deadline_s(LAN, 10, scale=1)


def test_two_nodes_wait_for_no_confirmation():
    assert Suspicion(0.0, [A], limit=4).deadline_s(LAN, 2, scale=1) == least_s(LAN, 2)


def test_three_nodes_wait_for_one():
    case = Suspicion(0.0, [A], limit=4)
    alone = case.deadline_s(LAN, 3, scale=1)
    case.accuse([B])
    assert case.deadline_s(LAN, 3, scale=1) == least_s(LAN, 3) < alone
