"""The emulated link as arithmetic: every arrival time can be worked out by hand."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.endpoints import Lane
from meshmoe.core.links import LinkShape
from meshmoe.transport.limits import QueueLimit
from meshmoe.transport.link_model import LinkModel
from meshmoe.transport.queue import ParcelQueue, QueuedParcel

SHAPE = LinkShape(rtt_s=0.010, rate_bytes_per_s=1e6)


class Link:
    """A model with its queues, and a log of arrivals found by stepping from event to event."""

    def __init__(self, shape=SHAPE, seed=1):
        self.queues = {lane: ParcelQueue(QueueLimit(1000, 1 << 40)) for lane in Lane}
        self.model = LinkModel(shape, self.queues, random.Random(seed), 0.0)
        self.now_s = 0.0
        self.arrivals = []

    def put(self, lane, size_bytes, name=b""):
        self.run_until(self.now_s)
        assert self.queues[lane].offer(QueuedParcel([name], size_bytes))

    def run_until(self, until_s):
        while (next_s := max(self.now_s, self.model.next_event_s())) <= until_s:
            self.now_s = next_s
            self.log(self.model.advance(next_s))
        self.now_s = until_s
        self.log(self.model.advance(until_s))

    def log(self, arrivals):
        self.arrivals += [(round(self.now_s, 9), lane, parcel.frames[0]) for lane, parcel in arrivals]

    def finish(self):
        while (next_s := self.model.next_event_s()) != math.inf:
            self.run_until(max(next_s, self.now_s))
        return self.arrivals


def times(arrivals):
    return [time_s for time_s, _, _ in arrivals]


def test_alone_a_parcel_takes_its_size_over_the_rate_plus_half_a_round_trip():
    link = Link()
    link.put(Lane.DATA, 2000)
    assert times(link.finish()) == [0.002 + 0.005]


def test_parcels_of_a_lane_follow_each_other():
    link = Link()
    for size in (1000, 3000, 500):
        link.put(Lane.DATA, size)
    assert times(link.finish()) == [0.006, 0.009, 0.0095]


def test_lanes_share_the_rate_evenly_and_a_probe_never_waits_for_a_chunk():
    link = Link()
    link.put(Lane.BULK, 1_000_000)
    link.run_until(0.1)
    link.put(Lane.CONTROL, 300)
    arrivals = link.finish()
    assert arrivals[0][:2] == (0.1056, Lane.CONTROL)
    assert arrivals[1][:2] == (1.0053, Lane.BULK)


def test_three_lanes_get_a_third_each_and_what_one_leaves_the_others_take():
    link = Link()
    for lane, size in ((Lane.CONTROL, 1000), (Lane.DATA, 2000), (Lane.BULK, 3000)):
        link.put(lane, size)
    # 1000 each by 3 ms; 1000 more for two by 5 ms; the last 1000 alone by 6 ms.
    assert times(link.finish()) == [0.008, 0.010, 0.011]


def test_jitter_is_extra_delay_within_its_bound_and_keeps_order():
    link = Link(LinkShape(rtt_s=0.010, rate_bytes_per_s=1e9, jitter_s=0.004))
    for number in range(500):
        link.put(Lane.DATA, 10, b"%d" % number)
    arrivals = link.finish()
    assert [int(name) for _, _, name in arrivals] == list(range(500))
    assert all(0.005 <= time_s <= 0.00901 for time_s in times(arrivals))
    single = []
    for seed in range(300):
        link = Link(LinkShape(rtt_s=0.010, rate_bytes_per_s=1e9, jitter_s=0.004), seed)
        link.put(Lane.DATA, 10)
        single += times(link.finish())
    assert min(single) < 0.0055
    assert max(single) > 0.0085
    assert sum(single) / len(single) == pytest.approx(0.007, abs=0.0003)


def test_the_same_seed_gives_the_same_times():
    shape = LinkShape(rtt_s=0.010, rate_bytes_per_s=1e6, jitter_s=0.004, loss=0.05)

    def run(seed):
        link = Link(shape, seed)
        for number in range(100):
            link.put(list(Lane)[number % 3], 100 * number)
        return link.finish()

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_a_loss_delays_its_lane_and_only_that():
    link = Link(LinkShape(rtt_s=0.010, rate_bytes_per_s=1e9, loss=1 - 1e-12))
    link.put(Lane.DATA, 100, b"lost")
    link.put(Lane.DATA, 100, b"behind")
    link.run_until(0.1)
    assert link.arrivals == []
    link.model.shape = SHAPE
    link.put(Lane.CONTROL, 100, b"other lane")
    names = [name for _, _, name in link.finish()]
    assert names == [b"other lane", b"lost", b"behind"]


def test_a_changed_shape_counts_from_then_on():
    link = Link()
    link.put(Lane.BULK, 2000)
    link.run_until(0.001)
    link.model.shape = LinkShape(rtt_s=0.002, rate_bytes_per_s=1e5)
    assert times(link.finish()) == [0.001 + 0.010 + 0.001]


def test_a_held_lane_sends_nothing_and_leaves_the_rate_to_others():
    link = Link()
    link.put(Lane.DATA, 1000)
    link.put(Lane.BULK, 1000)
    link.model.hold(Lane.DATA, True)
    link.run_until(0.1)
    assert times(link.arrivals) == [0.006]
    link.model.hold(Lane.DATA, False)
    assert link.finish()[1][:2] == (0.106, Lane.DATA)


def test_a_blocked_link_sends_nothing_but_what_was_on_its_way_arrives():
    link = Link()
    link.put(Lane.DATA, 1000, b"on its way")
    link.put(Lane.DATA, 1000, b"half gone")
    link.run_until(0.0015)
    link.model.blocked = True
    link.run_until(1.0)
    assert [name for _, _, name in link.arrivals] == [b"on its way"]
    link.model.blocked = False
    assert link.finish()[1] == (1.0055, Lane.DATA, b"half gone")


def test_infinite_rate_and_empty_parcels():
    link = Link(LinkShape(rtt_s=0.010, rate_bytes_per_s=math.inf))
    for lane in Lane:
        for size in (0, 1, 1 << 30):
            link.put(lane, size)
    assert times(link.finish()) == [0.005] * 9
    link = Link()
    link.put(Lane.DATA, 0)
    assert times(link.finish()) == [0.005]


@given(
    st.lists(st.tuples(st.sampled_from(list(Lane)), st.integers(0, 50_000), st.floats(0, 0.02)), max_size=30),
    st.lists(st.floats(0, 0.01), max_size=10),
)
def test_everything_arrives_once_in_order_and_no_faster_than_the_link(puts, looks):
    """Whenever one looks: the work done never depends on it."""
    link = Link()
    total = 0
    for number, (lane, size, pause_s) in enumerate(puts):
        link.put(lane, size, b"%d" % number)
        total += size
        link.run_until(link.now_s + pause_s)
    for pause_s in looks:
        link.run_until(link.now_s + pause_s)
    arrivals = link.finish()
    assert len(arrivals) == len(puts)
    for lane in Lane:
        numbers = [int(name) for _, on, name in arrivals if on is lane]
        assert numbers == sorted(numbers)
    if puts:
        assert times(arrivals)[-1] >= total / 1e6 + 0.005 - 1e-9
        busy_s = total / 1e6 + 0.005 + sum(pause_s for _, _, pause_s in puts)
        assert times(arrivals)[-1] <= busy_s + 1e-6


def test_what_passes_alone_takes_as_long_as_what_queues():
    link = Link()
    assert link.model.pass_alone(Lane.DATA, 2000, 0.0) == 0.002 + 0.005
    link.put(Lane.DATA, 1000)
    assert times(link.finish()) == [0.002 + 0.001 + 0.005], "it leaves when the wire is free"


def test_what_passes_alone_follows_what_did_before():
    link = Link()
    assert link.model.pass_alone(Lane.DATA, 500, 0.0) == pytest.approx(0.0055)
    assert link.model.pass_alone(Lane.DATA, 500, 0.0) == pytest.approx(0.006)
    assert link.model.pass_alone(Lane.DATA, 5000, 0.0) == pytest.approx(0.011)
    assert link.model.pass_alone(Lane.DATA, 1, 0.0) is None, "6 ms of waiting belong into a queue"


def test_nothing_passes_alone_where_something_waits():
    link = Link()
    link.put(Lane.BULK, 1_000_000)
    assert link.model.pass_alone(Lane.DATA, 10, 0.0) is None
    link.run_until(1.0)
    assert link.model.pass_alone(Lane.DATA, 10, 1.0) is not None
    link.model.hold(Lane.DATA, True)
    assert link.model.pass_alone(Lane.DATA, 10, 2.0) is None
    link.model.hold(Lane.DATA, False)
    link.model.blocked = True
    assert link.model.pass_alone(Lane.DATA, 10, 2.0) is None
