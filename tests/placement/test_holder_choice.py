"""Choosing holders: every expert exactly once, fewest messages among equals, and no needless slow link."""

from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.ids import NodeId
from meshmoe.placement.holder_choice import SLACK, choose_holders

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def rtt(times):
    return lambda peer, rows: times[peer] + rows * 1e-6


def test_one_expert_goes_to_the_nearest():
    assert choose_holders({5: 1}, {5: [A, B]}, rtt({A: 0.02, B: 0.001})) == {B: [5]}


def test_one_message_where_one_peer_holds_all():
    holders = {1: [A, B], 2: [B, C], 3: [B]}
    assert choose_holders({1: 1, 2: 1, 3: 1}, holders, rtt({A: 0.001, B: 0.001, C: 0.001})) == {B: [1, 2, 3]}


def test_a_far_peer_is_not_used_to_save_a_message():
    holders = {1: [A, C], 2: [B, C]}
    assert choose_holders({1: 1, 2: 1}, holders, rtt({A: 0.001, B: 0.001, C: 0.02})) == {A: [1], B: [2]}


def test_a_far_peer_that_is_needed_anyway_takes_more():
    holders = {1: [A, C], 2: [C]}
    assert choose_holders({1: 1, 2: 1}, holders, rtt({A: 0.001, C: 0.02})) == {C: [1, 2]}


def test_a_large_prefill_is_spread():
    slow_per_row = lambda peer, rows: 0.001 + rows * 1e-3  # noqa: E731
    chosen = choose_holders(dict.fromkeys(range(4), 100), {e: [A, B] for e in range(4)}, slow_per_row)
    assert {len(experts) for experts in chosen.values()} == {2}


@given(
    st.dictionaries(
        st.integers(0, 63),
        st.tuples(st.integers(1, 300), st.sets(st.sampled_from([A, B, C]), min_size=1)),
        min_size=1,
        max_size=12,
    ),
    st.tuples(*[st.floats(1e-4, 0.1)] * 3),
)
def test_every_expert_goes_once_to_a_holder(experts, times):
    time_s = rtt(dict(zip((A, B, C), times, strict=True)))
    holders = {e: sorted(h) for e, (_, h) in experts.items()}
    chosen = choose_holders({e: n for e, (n, _) in experts.items()}, holders, time_s)
    served = [e for given_experts in chosen.values() for e in given_experts]
    assert sorted(served) == sorted(experts)
    assert all(peer in holders[e] for peer, given_experts in chosen.items() for e in given_experts)


def test_beyond_the_bound_only_when_the_fast_holder_has_its_fill():
    time_s = rtt({A: 0.001, B: 0.005})
    chosen = choose_holders({1: 1, 2: 1}, {1: [A, B], 2: [A, B]}, time_s)
    assert chosen == {A: [1, 2]}
    assert time_s(A, 2) <= time_s(A, 1) * SLACK
