"""A node thinks about the plan when it has learned something, and waits while it is learning."""

import numpy as np
import pytest

from meshmoe.placement.live.occasion import GROWTH, PATIENCE_S, TOKENS_FAIR, TOKENS_MIN, Occasion, drift

EVEN = np.full((2, 8), 1.0)
OTHER = np.repeat([[3.0, 0.2]], 2, axis=0).repeat(4, axis=1)


def after_first(demand=EVEN, tokens=TOKENS_FAIR):
    occasion = Occasion()
    assert occasion.is_now(tokens, demand, 100.0, changing=False)
    return occasion


def test_the_first_thought_waits_for_a_fair_sample():
    occasion = Occasion()
    assert not occasion.is_now(0, 0 * EVEN, 5.0, changing=False) and not occasion.is_near(5.0)
    assert not occasion.is_now(TOKENS_FAIR - 1, EVEN, 10.0, changing=False)
    assert occasion.is_near(11.0)
    assert occasion.is_now(TOKENS_FAIR, EVEN, 12.0, changing=False)
    assert not occasion.is_near(13.0)


def test_a_slow_node_is_not_waited_for_long():
    occasion = Occasion()
    assert not occasion.is_now(1, EVEN, 10.0, changing=False)
    assert not occasion.is_now(TOKENS_MIN - 1, EVEN, 10.0 + PATIENCE_S, changing=False)
    assert not occasion.is_near(10.0 + PATIENCE_S), "others need not wait for it any longer"
    assert occasion.is_now(TOKENS_MIN, EVEN, 11.0 + PATIENCE_S, changing=False)


def test_a_sample_that_has_grown_is_worth_another_thought():
    occasion = after_first()
    assert not occasion.is_now(GROWTH * TOKENS_FAIR - 1, EVEN, 101.0, changing=False)
    assert occasion.is_now(GROWTH * TOKENS_FAIR, EVEN, 102.0, changing=False)
    assert not occasion.is_now(GROWTH * TOKENS_FAIR, EVEN, 103.0, changing=False)


@pytest.mark.parametrize("demand", [OTHER, 2.1 * EVEN, EVEN / 2.1, 0 * EVEN])
def test_other_shares_and_another_rate_are_reasons_but_not_while_use_changes(demand):
    occasion = after_first()
    assert not occasion.is_now(TOKENS_FAIR, demand, 101.0, changing=True)
    assert occasion.is_now(TOKENS_FAIR, demand, 102.0, changing=False)
    assert not occasion.is_now(TOKENS_FAIR, demand, 103.0, changing=False)


def test_noise_is_no_reason():
    occasion = after_first()
    noise = np.random.default_rng(0).uniform(0.8, 1.25, EVEN.shape)
    assert not occasion.is_now(TOKENS_FAIR, EVEN * noise, 101.0, changing=False)


def test_after_a_change_of_use_it_thinks_at_once():
    occasion = after_first(tokens=1024)
    occasion.use_changed()
    assert occasion.is_now(512, EVEN, 101.0, changing=False)


def test_drift_runs_from_the_same_to_nothing_in_common():
    assert drift(EVEN, EVEN) == 0 and drift(0 * EVEN, 0 * EVEN) == 0
    assert drift(np.array([1.0, 0.0]), np.array([0.0, 2.0])) == 1
