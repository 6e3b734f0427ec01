"""The simulator's own parts: time, processes, the network, disks."""

from random import Random

import pytest

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.sim.clock import STILL_MAX, Clock, StandstillError
from meshmoe.sim.disk import Disk
from meshmoe.sim.network import Network, Weather
from meshmoe.sim.process import Alarm, Process

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
EXPERT = ExpertId(0, 1)


def test_clock_keeps_the_order_of_times_and_of_setting():
    clock, seen = Clock(), []
    for when_s, name in ((2.0, "late"), (1.0, "first"), (1.0, "second")):
        clock.at(when_s, lambda name=name: seen.append((clock.now, name)))
    clock.run_until(1.5)
    assert seen == [(1.0, "first"), (1.0, "second")]
    assert clock.now == 1.5


def test_clock_notices_that_time_stands_still():
    clock = Clock()

    def again():
        clock.after(0.0, again)

    again()
    with pytest.raises(StandstillError):
        clock.run_until(1.0)
    assert clock.calls >= STILL_MAX


def test_process_sees_its_own_clock():
    clock = Clock()
    process = Process(clock, Random(1), rate=1.05)
    start_s = process.now_s
    clock.run_until(100.0)
    assert process.now_s - start_s == pytest.approx(105.0)
    rung = []
    process.at(process.now_s + 10.5, lambda: rung.append(clock.now))
    clock.run_until(200.0)
    assert rung == [pytest.approx(110.0, abs=1e-3)]


def test_paused_process_finds_everything_afterwards_and_a_dead_one_nothing():
    clock, seen = Clock(), []
    process = Process(clock, Random(1), rate=1.0)
    process.pause(5.0)
    for i in range(4):
        process.after(1.0 + i, lambda i=i: seen.append(i))
    clock.run_until(4.5)
    assert seen == []
    clock.run_until(5.0)
    assert sorted(seen) == [0, 1, 2, 3]
    process.end()
    process.run(lambda: seen.append("dead"))
    assert "dead" not in seen


def test_slow_process_is_late_with_everything():
    clock, seen = Clock(), []
    process = Process(clock, Random(1), rate=1.0)
    process.lag_s = 0.4
    process.run(lambda: seen.append(clock.now))
    clock.run_until(1.0)
    assert seen == [0.4]


def test_alarm_rings_at_the_earliest_deadline():
    clock, rung = Clock(), []
    process = Process(clock, Random(1), rate=1.0)
    deadlines = [process.now_s + 3.0]

    def tick():
        rung.append(round(clock.now, 3))
        deadlines[0] = float("inf")

    alarm = Alarm(process, lambda: deadlines[0], tick)
    alarm.set()
    deadlines[0] = process.now_s + 1.0
    alarm.set()
    clock.run_until(10.0)
    assert rung[0] == 1.0


def sent(network, clock, link, count, until_s):
    arrived = []
    for i in range(count):
        network.carry(link, lambda i=i: arrived.append((clock.now, i)))
    clock.run_until(until_s)
    return arrived


def test_network_loses_repeats_and_reorders():
    clock = Clock()
    network = Network(clock, Random(3))
    assert len(sent(network, clock, (A, B), 500, 10.0)) == 500
    network.weather = Weather(loss=0.5)
    assert 200 < len(sent(network, clock, (A, B), 500, 20.0)) < 300
    network.weather = Weather(duplication=0.5, jitter_s=0.1)
    arrived = sent(network, clock, (A, B), 500, 40.0)
    assert 700 < len(arrived) < 800
    order = [i for _, i in arrived]
    assert order != sorted(order)


def test_split_cuts_between_sides_for_its_time():
    clock = Clock()
    network = Network(clock, Random(0))
    network.split([A, B, C], 5.0, one_way=True)
    assert network.cut
    assert not any((b, a) in network.cut for a, b in network.cut), "one way is one way"
    cut = next(iter(network.cut))
    assert sent(network, clock, cut, 3, 4.0) == []
    clock.run_until(5.0)
    assert len(sent(network, clock, cut, 3, 6.0)) == 3


def test_clog_holds_back_and_weights_queue():
    clock = Clock()
    network = Network(clock, Random(0))
    network.clog((A, B), 3.0)
    assert [at_s for at_s, _ in sent(network, clock, (A, B), 2, 4.0)] == [3.0, 3.0]
    network.weather = Weather(jitter_s=0.0, delay_s=0.0, rate_bytes_per_s=1e6)
    arrived = []
    for _ in range(2):
        network.carry((B, C), lambda: arrived.append(clock.now), 1_000_000)
    clock.run_until(10.0)
    assert arrived == [5.0, 6.0]


def test_disk_keeps_prefixes():
    disk = Disk(1, {EXPERT: 100}, whole_model=False)
    assert not disk.has(EXPERT)
    disk.append(EXPERT, 0, 60)
    with pytest.raises(AssertionError):
        disk.append(EXPERT, 0, 40)
    disk.append(EXPERT, 60, 40)
    assert disk.whole_units() == {EXPERT}
    disk.delete(EXPERT)
    assert not disk.has(EXPERT)
