"""The promises of issue 3: how soon a death is known to all, and that loss alone kills nobody.

Many more seeds: ``.venv/bin/python -m tests.membership.figures``.
"""

import pytest

from tests.membership.figures import detect


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [10, 20, 40])
def test_a_death_is_known_to_all_within_ten_seconds(n, seed):
    run = detect(n, 0.0, seed, watch_s=5)
    assert run.last_s < 10
    assert run.suspicions == 0


def test_a_death_is_known_to_all_of_a_hundred_within_ten_seconds():
    assert detect(100, 0.0, 1, watch_s=1).last_s < 10


@pytest.mark.parametrize("seed", range(10))
def test_half_of_all_messages_lost_kills_none_of_ten(seed):
    run = detect(10, 0.5, seed)
    assert run.false_deaths == 0
    assert run.last_s < 15


def test_half_of_all_messages_lost_kills_none_of_forty():
    run = detect(40, 0.5, 1)
    assert run.false_deaths == 0
    assert run.last_s < 15


def test_a_death_among_a_hundred_is_known_within_fifteen_seconds_though_half_of_all_messages_are_lost():
    run = detect(100, 0.5, 1, watch_s=3)
    assert run.false_deaths == 0
    assert run.last_s < 15
