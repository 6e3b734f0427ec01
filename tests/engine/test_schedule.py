"""The order of jobs, as pure arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.engine.schedule import SHARE_MIN, Priority, RunQueue


def test_classes_then_first_come():
    queue = RunQueue()
    for name, priority in (("p", 3), ("d", 2), ("e", 2), ("x", 0), ("y", 1)):
        queue.push(Priority(priority), name)
    assert queue.more_urgent_than(Priority.PEER_PREFILL)
    assert not queue.more_urgent_than(Priority.PEER_DECODE)
    queue.push_front(Priority.DECODE, "first")
    assert queue.remove(Priority.DECODE, "e")
    assert not queue.remove(Priority.DECODE, "e")
    order = []
    while queue:
        order.append(queue.pop())
    assert order == ["x", "y", "first", "d", "p"]
    assert queue.pop() is None


@settings(deadline=None, max_examples=50)
@given(
    high_s=st.floats(1e-3, 0.1),
    low_s=st.floats(1e-3, 0.1),
    classes=st.tuples(st.sampled_from(Priority), st.sampled_from(Priority)).filter(lambda pair: pair[0] < pair[1]),
)
def test_the_lower_class_gets_its_share_and_not_much_more(high_s, low_s, classes):
    high, low = classes
    queue, used = RunQueue(), {high: 0.0, low: 0.0}
    queue.push(high, high)
    queue.push(low, low)
    while used[high] + used[low] < 200 * max(high_s, low_s):
        running = queue.pop()
        took_s = high_s if running == high else low_s
        # The slice runs while the other one waits, then its job queues again.
        queue.account(running, took_s)
        queue.push(running, running)
        used[running] += took_s
    share = used[low] / (used[high] + used[low])
    # A slice of the higher class can be longer than what was still to be earned: then the share is smaller.
    assert share <= SHARE_MIN / (1 + SHARE_MIN) * 1.1
    assert share >= min(SHARE_MIN / (1 + SHARE_MIN), low_s / (low_s + high_s)) * 0.45


@pytest.mark.parametrize("lowest", [Priority.PEER_PREFILL, Priority.DECODE, Priority.PREFILL])
def test_alone_a_class_needs_to_earn_nothing(lowest):
    queue = RunQueue()
    for _ in range(10):
        queue.push(lowest, "job")
        assert queue.pop() == "job"
        queue.account(lowest, 5.0)
