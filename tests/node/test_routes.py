"""What the compute thread remembers of the mesh: never anything older than the mesh's last change."""

import pytest

from meshmoe.core.ids import NodeId
from meshmoe.node.peer_times import PeerTimes
from meshmoe.node.routes import KEPT_S, Routes

NEAR, FAR = NodeId("near"), NodeId("far")


class Knowledge:
    def __init__(self):
        self.of, self.fixed_s, self.version, self.asked = (NEAR, FAR), 0.001, 0, 0

    def holders(self, expert):
        self.asked += 1
        return self.of

    def call_time_s(self, peer, payload_bytes):
        return self.fixed_s + payload_bytes / 1e9


@pytest.fixture
def known():
    return Knowledge()


@pytest.fixture
def times():
    return PeerTimes()


@pytest.fixture
def routes(known, times):
    made = Routes(known, times)
    made.look(0.0)
    return made


def test_a_holder_is_looked_up_once_until_the_mesh_changes(routes, known):
    assert [routes.holders(1, 2) for _ in range(3)] == [[NEAR, FAR]] * 3
    assert known.asked == 1
    known.of, known.version = (FAR,), 1
    routes.look(0.001)
    assert routes.holders(1, 2) == (FAR,)


def test_without_a_change_things_are_kept_for_a_bounded_time(routes, known):
    assert routes.call_time_s(NEAR, 0) == pytest.approx(0.001)
    known.fixed_s = 0.005
    routes.look(KEPT_S / 2)
    assert routes.call_time_s(NEAR, 0) == pytest.approx(0.001)
    routes.look(KEPT_S)
    assert routes.call_time_s(NEAR, 0) == pytest.approx(0.005)


def test_bytes_cost_what_the_mesh_says(routes, known):
    assert routes.call_time_s(FAR, 123_456) == pytest.approx(known.call_time_s(FAR, 123_456))


def test_a_peer_that_has_disappointed_is_passed_over_at_once_and_trusted_again_later(routes, times):
    assert routes.holders(0, 0) == [NEAR, FAR]
    times.missed(NEAR, 0.1)
    routes.forget()
    routes.look(0.1)
    assert routes.holders(0, 0) == [FAR]
    assert routes.spare(0, 0)  # the deadline may still be short: there are two
    routes.look(20.0)
    assert routes.holders(0, 0) == [NEAR, FAR]


def test_where_everybody_is_distrusted_all_are_asked(routes, times):
    for peer in (NEAR, FAR):
        times.missed(peer, 0.0)
    assert routes.holders(0, 0) == (NEAR, FAR)
