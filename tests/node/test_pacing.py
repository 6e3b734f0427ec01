"""Weights give way to expert calls, and take the link back when nobody calls."""

from hypothesis import given
from hypothesis import strategies as st

from meshmoe.custody.throttle import RATE_MAX_BYTES_PER_S, RATE_MIN_BYTES_PER_S
from meshmoe.node.pacing import CALLS_MIN, LISTEN_S, RATE_START_BYTES_PER_S, CallLatency, CallTimes, Pacer


def test_a_percentile_needs_enough_calls_and_starts_anew_each_time():
    latency = CallLatency()
    for _ in range(CALLS_MIN - 1):
        latency.note(0.01, 1.0)
    assert latency.take_p99_s() == 0.0
    for number in range(200):
        latency.note(number / 1000, 2.0)
    assert latency.take_p99_s() == 0.197
    assert latency.take_p99_s() == 0.0
    assert latency.since(1.5) == CallTimes(200, 0.1, 0.197)
    assert latency.since(2.5) == CallTimes(0, 0.0, 0.0)


def test_slow_calls_halve_the_rate_and_calm_ones_raise_it():
    pacer = Pacer()
    for _ in range(5):
        assert pacer.step(0.010, moving=False) == RATE_START_BYTES_PER_S
    assert pacer.step(0.020, moving=True) == RATE_START_BYTES_PER_S / 2
    assert pacer.step(0.013, moving=True) == RATE_START_BYTES_PER_S / 2
    assert pacer.step(0.010, moving=True) > RATE_START_BYTES_PER_S / 2
    for _ in range(30):
        pacer.step(1.0, moving=True)
    assert pacer.rate_bytes_per_s == RATE_MIN_BYTES_PER_S


def test_where_weights_moved_first_they_are_held_back_to_learn_what_calls_take():
    pacer = Pacer()
    assert pacer.step(0.0, moving=True, moved_bytes=9_000_000) == RATE_MAX_BYTES_PER_S
    for _ in range(LISTEN_S):
        assert pacer.step(0.050, moving=True, moved_bytes=9_000_000) == RATE_MIN_BYTES_PER_S
    assert pacer.step(0.010, moving=True) == RATE_START_BYTES_PER_S
    assert pacer.step(0.020, moving=True, moved_bytes=8_000_000) == 4_000_000, "of what came in, not of the rate"
    assert pacer.step(0.011, moving=True, moved_bytes=4_000_000) == 4_450_000, "5 % of the fastest second more"
    assert pacer.step(0.013, moving=True, moved_bytes=4_000_000) == 4_450_000


def test_without_calls_weights_have_the_link_until_calls_come():
    pacer = Pacer()
    assert pacer.step(0.010, moving=False) == RATE_START_BYTES_PER_S
    assert pacer.step(0.0, moving=True) == RATE_MAX_BYTES_PER_S
    assert pacer.step(0.010, moving=True) == RATE_START_BYTES_PER_S


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans(), st.integers(0, 1 << 34)), max_size=60))
def test_the_rate_keeps_its_bounds(seconds):
    pacer = Pacer()
    for p99_s, moving, moved_bytes in seconds:
        rate = pacer.step(p99_s, moving=moving, moved_bytes=moved_bytes)
        assert RATE_MIN_BYTES_PER_S <= rate <= RATE_MAX_BYTES_PER_S
