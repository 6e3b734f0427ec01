"""What the compute thread remembers of the mesh: never anything older than the mesh's last change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.ids import NodeId
from meshmoe.node.peer_times import PeerTimes
from meshmoe.node.routes import KEPT_S, Routes
from meshmoe.placement.holder_choice import choose_holders

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
    assert routes.choose(0, {0: [0]}, 1).spare  # the deadline may still be short: there are two
    routes.look(20.0)
    assert routes.holders(0, 0) == [NEAR, FAR]


def test_where_everybody_is_distrusted_all_are_asked(routes, times):
    for peer in (NEAR, FAR):
        times.missed(peer, 0.0)
    assert routes.holders(0, 0) == (NEAR, FAR)


PEERS = [NodeId(name) for name in "abcd"]
TIMES_S = st.sampled_from([0.001, 0.0011, 0.0012, 0.002, 0.005])


class Spread:
    """Experts of one layer with several holders, each as far away as the test says."""

    version = 0

    def __init__(self, holders, fixed_s, byte_s):
        self.of, self.fixed_s, self.byte_s = holders, fixed_s, byte_s

    def holders(self, expert):
        return self.of[expert.index]

    def call_time_s(self, peer, payload_bytes):
        return self.fixed_s[peer] + self.byte_s[peer] * payload_bytes


@given(
    st.lists(st.lists(st.sampled_from(PEERS), min_size=1, max_size=4, unique=True), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True).map(sorted), min_size=6, max_size=6),
    st.lists(TIMES_S, min_size=4, max_size=4),
    st.lists(st.sampled_from([1e-9, 1e-8, 1e-7]), min_size=4, max_size=4),
)
def test_the_short_way_chooses_as_the_long_one(holders, rows, fixed_s, byte_s):
    known = Spread(holders, dict(zip(PEERS, fixed_s, strict=True)), dict(zip(PEERS, byte_s, strict=True)))
    routes = Routes(known, PeerTimes())
    routes.look(0.0)
    asked = dict(enumerate(rows[: len(holders)]))
    long_way = choose_holders(
        {expert: len(numbers) for expert, numbers in asked.items()},
        dict(enumerate(holders)),
        lambda peer, count: routes.call_time_s(peer, count * 1024),
    )
    choice = routes.choose(3, asked, 1024)
    assert choice.experts == long_way
    assert choice.spare == all(len(peers) > 1 for peers in holders)


def test_an_expert_without_a_holder_leaves_no_choice():
    routes = Routes(Spread([[NEAR], []], {NEAR: 0.001}, {NEAR: 0.0}), PeerTimes())
    routes.look(0.0)
    assert routes.choose(0, {0: [0], 1: [0]}, 1024) is None
    assert routes.choose(0, {0: [0]}, 1024).experts == {NEAR: [0]}
