"""Waiting awake: only for what is due soon, and only on cores that would be idle."""

import pytest

from meshmoe.node.vigil import IDLE_CORES_TO_BEGIN, IDLE_CORES_TO_GO_ON, LOOK_EVERY_S, SOON_S, Vigil


class Box:
    """Says how long cores were idle, and so how many of them since the last look."""

    def __init__(self):
        self.cores, self.now_s, self.idle_s, self.looks = 0.0, 100.0, 0.0, 0

    def idle(self):
        self.looks += 1
        return self.idle_s

    def go(self, seconds):
        self.now_s += seconds
        self.idle_s += seconds * self.cores


@pytest.fixture
def box():
    return Box()


def awake(vigil, box, within_s=SOON_S):
    vigil.expect(box.now_s, within_s)
    return vigil.awake_s(box.now_s)


def warm(vigil, box, cores):
    """Let it see a while with so many idle cores."""
    for _ in range(3):
        awake(vigil, box)
        box.cores = cores
        box.go(LOOK_EVERY_S)


def test_it_waits_awake_while_cores_are_idle(box):
    vigil = Vigil(idle_s=box.idle)
    warm(vigil, box, IDLE_CORES_TO_BEGIN)
    assert awake(vigil, box, 0.002) == pytest.approx(0.002)
    box.go(0.0015)
    assert vigil.awake_s(box.now_s) == pytest.approx(0.0005)
    box.go(0.001)
    assert vigil.awake_s(box.now_s) == 0.0


def test_a_busy_box_lets_it_sleep(box):
    vigil = Vigil(idle_s=box.idle)
    warm(vigil, box, IDLE_CORES_TO_BEGIN - 0.1)
    assert awake(vigil, box) == 0.0


def test_its_own_core_does_not_count_against_it_but_others_do(box):
    vigil = Vigil(idle_s=box.idle)
    warm(vigil, box, IDLE_CORES_TO_BEGIN)
    warm(vigil, box, IDLE_CORES_TO_GO_ON)
    assert awake(vigil, box) > 0.0
    warm(vigil, box, IDLE_CORES_TO_GO_ON - 0.1)
    assert awake(vigil, box) == 0.0


def test_what_is_due_later_is_slept_for(box):
    vigil = Vigil(idle_s=box.idle)
    warm(vigil, box, 8.0)
    box.go(1.0)
    assert awake(vigil, box, 2 * SOON_S) == 0.0
    assert awake(vigil, box, float("inf")) == 0.0


def test_what_was_seen_long_ago_says_nothing(box):
    vigil = Vigil(idle_s=box.idle)
    warm(vigil, box, 8.0)
    box.cores = 0.0
    box.go(60.0)
    awake(vigil, box)
    box.go(LOOK_EVERY_S)
    assert awake(vigil, box) == 0.0


def test_the_kernel_is_asked_twice_a_second_at_most_and_never_for_nothing(box):
    vigil = Vigil(idle_s=box.idle)
    for _ in range(1000):
        awake(vigil, box)
        box.go(0.001)
    assert box.looks <= 1 + 1.0 / LOOK_EVERY_S
    off = Vigil(enabled=False, idle_s=box.idle)
    before = box.looks
    warm(off, box, 8.0)
    assert awake(off, box) == 0.0
    assert box.looks == before


def test_the_kernel_knows_how_long_cores_were_idle():
    assert Vigil()._idle_s() > 0.0
