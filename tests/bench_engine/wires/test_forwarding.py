"""The arithmetic of lines, who a packet is for, and what is read out of the tally."""

import numpy as np
import pytest

from meshmoe.bench_engine.wires.figures import read_figures
from meshmoe.bench_engine.wires.forwarding import (
    FREE_NS,
    FULL,
    JITTER_NS,
    LATE,
    LATE_US_MAX,
    LINKED,
    LOSS_ONE,
    LOSS_SHARE,
    PACKETS,
    QUEUE_NS_MAX,
    TALLY_WORDS,
    enter,
    target,
)
from meshmoe.bench_engine.wires.plan import WiresPlan
from meshmoe.bench_engine.wires.process import lines_of
from meshmoe.core.links import LINK_PRESETS, LinkShape

EDGE = LINK_PRESETS["edge"]


def line(shape=EDGE):
    return lines_of(WiresPlan(2, [(0, 1, shape)], ""))[1]


def test_a_packet_takes_its_time_on_the_line_and_half_the_round_trip():
    one = line()
    # 1,000 bytes at 500 Mbit/s are 16 us.
    assert enter(one, 5_000, 1_000, 0.0) == 5_000 + 16_000 + 600_000
    # The next one waits for the line, and one that comes later does not.
    assert enter(one, 5_000, 1_000, 0.0) == 5_000 + 32_000 + 600_000
    assert enter(one, 900_000, 500, 0.0) == 900_000 + 8_000 + 600_000


def test_jitter_delays_and_never_overtakes():
    one = line(LinkShape(rtt_s=0.01, rate_bytes_per_s=1e9, jitter_s=0.002))
    assert enter(one, 0, 1_000, 0.5) == 1_000 + 5_000_000 + 1_000_000
    assert enter(one, 0, 1_000, 0.0) == 1_000 + 5_000_000 + 1_000_000


def test_a_queue_that_is_too_long_drops_what_comes_and_is_no_longer_for_it():
    one = line()
    arrivals = [enter(one, 0, 9_000, 0.0) for _ in range(1_000)]
    taken = sum(due >= 0 for due in arrivals)
    # 9,000 bytes are 144 us: what begins at the very end of the queue still goes.
    assert taken == QUEUE_NS_MAX // 144_000 + 1
    assert one[FREE_NS] == taken * 144_000
    assert enter(one, QUEUE_NS_MAX, 9_000, 0.0) > 0


def test_both_directions_of_a_link_are_alike_and_other_pairs_have_none():
    shape = LinkShape(rtt_s=0.01, rate_bytes_per_s=1e6, jitter_s=0.003, loss=0.25)
    lines = lines_of(WiresPlan(3, [(0, 2, shape)], ""))
    assert [row for row in range(9) if lines[row, LINKED]] == [2, 6]
    assert (lines[2] == lines[6]).all()
    assert lines[2, JITTER_NS] == 3_000_000
    assert lines[2, LOSS_SHARE] == LOSS_ONE // 4


def packet(*destination, version=4):
    return np.array([version << 4 | 5, *[0] * 15, *destination, *[7] * 8], np.uint8)


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (packet(10, 77, 0, 1), 0),
        (packet(10, 77, 0, 3), 2),
        (packet(10, 77, 0, 4), -1),  # there are three nodes
        (packet(10, 77, 0, 0), -1),
        (packet(10, 78, 0, 1), -1),
        (packet(224, 0, 0, 251), -1),
        (packet(10, 77, 0, 1, version=6), -1),
        (packet(10, 77, 0, 1)[:19], -1),
    ],
)
def test_whom_a_packet_is_for(data, number):
    assert target(data, len(data), 3) == number


def test_what_the_tally_says(tmp_path):
    tally = np.zeros(TALLY_WORDS, np.int64)
    tally[PACKETS], tally[FULL] = 100, 3
    tally[LATE + 7], tally[LATE + 40], tally[LATE + LATE_US_MAX] = 60, 38, 2
    tally.tofile(tmp_path / "tally")
    figures = read_figures(tmp_path / "tally", 0.0012)
    assert (figures.late_p50_us, figures.late_p99_us) == (7, LATE_US_MAX)
    assert figures.processor_us == pytest.approx(12)
    assert "100 packets" in figures.words()
    assert "3 dropped" in figures.words()
