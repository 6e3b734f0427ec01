"""All together or in halves: whichever writes faster, found by trying, in any number of requests."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from meshmoe.engine.lean.halves import TRY_EVERY, WINDOW_S, Halves


class Box:
    """Steps of a fixed length in either way."""

    def __init__(self, halves_step_s, together_step_s, waiting=0.6):
        self.halves, self.now_s = Halves(), 0.0
        self.step_s = {True: halves_step_s, False: together_step_s}
        self.waiting = waiting
        self.spent_s = {True: 0.0, False: 0.0}

    def run(self, seconds, writers=4):
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            way = self.halves.now
            self.now_s += self.step_s[way]
            self.spent_s[way] += self.step_s[way]
            self.halves.waited(self.waiting)
            self.halves.wrote(writers // 2 if way else writers, writers, self.now_s)
        return self

    def share(self, way):
        return self.spent_s[way] / sum(self.spent_s.values())


@pytest.mark.parametrize("better", [True, False])
def test_the_faster_way_is_found_and_kept(better):
    # A step of half of the requests that takes 0.4 or 0.6 of one of all.
    box = Box(0.008 if better else 0.012, 0.02).run(5.0)
    box.spent_s = {True: 0.0, False: 0.0}
    box.run(60.0)
    assert box.share(better) > 1 - 1.5 / TRY_EVERY
    assert box.share(not better) > 0, "the other way is tried now and then"


def test_a_change_is_noticed():
    box = Box(0.008, 0.02).run(20.0)
    box.step_s = {True: 0.015, False: 0.02}
    box.run(60.0)
    box.spent_s = {True: 0.0, False: 0.0}
    assert box.run(20.0).share(False) > 0.8


def test_hardly_different_is_no_reason():
    box = Box(0.0098, 0.02).run(60.0)
    assert box.share(False) > 0.8


def test_without_waiting_nobody_splits():
    box = Box(0.005, 0.02, waiting=0.1).run(20.0)
    assert box.share(False) == 1.0


def test_one_request_is_no_measure():
    box = Box(0.008, 0.02).run(20.0, writers=1)
    assert box.share(False) == 1.0


def test_what_is_held_against_each_other_is_of_the_same_requests():
    box = Box(0.008, 0.02)
    for writers in (4, 6) * 40:
        box.run(0.8 * WINDOW_S, writers)
    assert box.share(False) == 1.0, "no window lasts"
    for writers in (4, 6) * 40:
        box.run(1.7 * WINDOW_S, writers)
    assert box.halves._won == 0 and not box.halves._favourite, "no pair of windows does"
    for writers in (4, 6) * 10:
        box.run(4 * WINDOW_S, writers)
    assert box.halves._favourite


def test_requests_that_come_and_go_do_not_spend_their_time_in_trials_that_never_end():
    box = Box(0.012, 0.02)
    for writers in (4, 6) * 60:
        box.run(1.7 * WINDOW_S, writers)
    assert box.share(False) > 0.9
    assert box.share(True) > 0


@pytest.mark.parametrize("seed", range(20))
def test_noise_hardly_ever_wins(seed):
    """Rates that vary by a third from window to window, as on a box that is shared."""
    rng, halves, now_s, spent_s = random.Random(seed), Halves(), 0.0, Counter()
    for _ in range(400):
        factor = rng.uniform(0.75, 1.35)
        for _ in range(40):
            way = halves.now
            step_s = factor * (0.011 if way else 0.02)
            now_s += step_s
            spent_s[way] += step_s
            halves.waited(0.6)
            halves.wrote(2 if way else 4, 4, now_s)
    assert spent_s[False] > 0.8 * spent_s.total()
