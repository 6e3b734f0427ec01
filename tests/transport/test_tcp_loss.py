"""What a lost segment costs, table by table."""

import random

import pytest

from meshmoe.transport.tcp_loss import RTO_MIN_S, SEGMENT_BYTES, TLP_SLACK_S, retransmission_delay_s

RTT_S = 0.020
LOSS = 0.001


class Dice:
    """Loses the segments named (counted from the last one backwards), and never a retransmission."""

    def __init__(self, lost_from_end, again=0):
        self.gaps = []
        behind = 0
        for lost in lost_from_end:
            self.gaps.append(lost - behind)
            behind = lost + 1
        self.again = again
        self.drawing_gap = True

    def random(self):
        # Each loss draws a gap, then asks whether the retransmission is lost, too.
        if self.drawing_gap:
            self.drawing_gap = False
            gap = self.gaps.pop(0) if self.gaps else 20_000
            return 1 - (1 - LOSS) ** (gap + 0.5)
        if self.again:
            self.again -= 1
            return 0.0
        self.drawing_gap = True
        return 1.0


def delay(size_bytes, lost_from_end, followed=False, segment_s=0.0, again=0):
    dice = Dice(lost_from_end, again)
    return retransmission_delay_s(
        size_bytes, followed=followed, rtt_s=RTT_S, segment_s=segment_s, loss=LOSS, chance=dice
    )


@pytest.mark.parametrize(
    ("segments", "lost", "followed", "expected_s"),
    [
        (1, [], False, 0),
        (1, [0], False, RTT_S + RTO_MIN_S),
        (1, [0], True, 1.25 * RTT_S),
        (10, [0], False, 2 * RTT_S + TLP_SLACK_S),
        (10, [0], True, 1.25 * RTT_S),
        (10, [3], False, 1.25 * RTT_S),
        (10, [3, 7], False, 1.25 * RTT_S),
        (10, [0, 3], False, 2 * RTT_S + TLP_SLACK_S),
        (10, [10], False, 0),  # a segment before the parcel's first
    ],
)
def test_single_repairs(segments, lost, followed, expected_s):
    assert delay(segments * SEGMENT_BYTES, lost, followed) == pytest.approx(expected_s)


def test_what_is_repaired_before_the_last_segment_leaves_costs_nothing():
    assert delay(1000 * SEGMENT_BYTES, [500], segment_s=0.001) == 0
    assert delay(1000 * SEGMENT_BYTES, [5], segment_s=0.001) == pytest.approx(1.25 * RTT_S - 0.005)


def test_losing_the_retransmission_costs_a_timeout_and_then_twice_that():
    one = delay(10 * SEGMENT_BYTES, [3], again=1)
    two = delay(10 * SEGMENT_BYTES, [3], again=2)
    assert one == pytest.approx(1.25 * RTT_S + RTT_S + RTO_MIN_S)
    assert two == pytest.approx(1.25 * RTT_S + 3 * (RTT_S + RTO_MIN_S))


def test_no_loss_costs_nothing():
    chance = random.Random(1)
    assert retransmission_delay_s(1 << 30, followed=False, rtt_s=1, segment_s=0, loss=0, chance=chance) == 0


@pytest.mark.parametrize("loss", [0.001, 0.01, 0.1])
def test_small_parcels_are_hit_as_often_as_segments_are_lost(loss):
    chance = random.Random(4)
    hits = sum(
        retransmission_delay_s(200, followed=False, rtt_s=RTT_S, segment_s=0, loss=loss, chance=chance) > 0
        for _ in range(40_000)
    )
    assert hits / 40_000 == pytest.approx(loss, rel=0.4)


def test_total_loss_ends_all_the_same():
    chance = random.Random(1)
    delay_s = retransmission_delay_s(1 << 20, followed=False, rtt_s=RTT_S, segment_s=1e-4, loss=1.0, chance=chance)
    assert 10 < delay_s < 100
