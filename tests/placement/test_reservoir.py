"""The reservoir is bounded, prefers what is recent, and its rates are right on average."""

import random

import numpy as np
import pytest

from meshmoe.placement.reservoir import Reservoir


def fill(reservoir, rate, seconds, start=0.0, tag=None):
    for i in range(int(rate * seconds)):
        now = start + (i + 1) / rate
        reservoir.add(tag if tag is not None else now, now)


def test_while_nothing_was_dropped_weights_are_exact():
    reservoir = Reservoir(100, half_life_s=10.0, rng=random.Random(0), now=0.0)
    for at in (0.0, 10.0, 20.0):
        reservoir.add(at, at)
    rates = reservoir.rates(20.0)
    assert reservoir.items() == [0.0, 10.0, 20.0]
    assert rates[1:] / rates[:-1] == pytest.approx(2.0)


@pytest.mark.parametrize("capacity", [50, 400])
def test_rates_add_up_to_the_streams_rate(capacity):
    totals = []
    for seed in range(20):
        reservoir = Reservoir(capacity, half_life_s=20.0, rng=random.Random(seed), now=0.0)
        fill(reservoir, 10.0, 100.0)
        assert len(reservoir) == min(capacity, 1000)
        totals.append(reservoir.rates(100.0).sum())
    assert np.mean(totals) == pytest.approx(10.0, rel=0.06)


def test_a_shift_of_demand_is_forgotten_at_the_half_life():
    shares = []
    for seed in range(20):
        reservoir = Reservoir(200, half_life_s=30.0, rng=random.Random(seed), now=0.0)
        fill(reservoir, 10.0, 300.0, tag="old")
        fill(reservoir, 10.0, 60.0, start=300.0, tag="new")
        old = np.array([item == "old" for item in reservoir.items()])
        rates = reservoir.rates(360.0)
        shares.append(rates[old].sum() / rates.sum())
    assert np.mean(shares) == pytest.approx(0.25, abs=0.03)  # two half-lives


def test_years_do_no_harm():
    reservoir = Reservoir(10, half_life_s=60.0, rng=random.Random(0), now=0.0)
    fill(reservoir, 1.0, 20.0, start=3e8)
    assert np.isfinite(reservoir.rates(3e8 + 20)).all()
    assert reservoir.rates(3e8 + 20).sum() > 0


def test_senseless_sizes_are_refused():
    with pytest.raises(ValueError, match="room"):
        Reservoir(0, 1.0, random.Random(0), 0.0)
