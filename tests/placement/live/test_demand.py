import random

import numpy as np
import pytest

from meshmoe.gossip.packing import RATES, pack_rate
from meshmoe.placement.live.demand import DemandKeeper, DemandNews, quantised
from meshmoe.placement.live.occasion import drift
from tests.placement.worlds import routing


def keeper(half_life_s=60.0):
    return DemandKeeper(4, 32, half_life_s, random.Random(1), 0.0)


def texts(seed, tokens):
    return routing(np.random.default_rng(seed), tokens, 4, 32, 4, 0.3).astype(np.int16)


def test_rates_are_those_of_the_stream():
    kept = keeper()
    for second in range(300):
        kept.add(texts(0, 5), float(second), decode=True)
        kept.add(texts(0, 40), second + 0.5, decode=False)
    trace = kept.trace(300.0)
    assert trace.decode.tokens_per_s == pytest.approx(5.0, rel=0.1)
    assert trace.prefill.tokens_per_s == pytest.approx(40.0, rel=0.2)
    assert trace.demand(32).sum() == pytest.approx(45 * 4 * 4, rel=0.2)
    assert (trace.decode.rows == 1).all()


def test_tokens_without_experts_of_the_mesh_ask_for_nothing():
    kept = keeper()
    sets = texts(0, 50)
    sets[:, 1] = -1
    kept.add(sets, 1.0, decode=True)
    kept.add(sets, 1.0, decode=False)
    demand = kept.trace(2.0).demand(32)
    assert demand[1].sum() == 0 and demand[0].sum() > 0


def domain(number):
    """Texts that prefer their own experts."""
    weights = np.random.default_rng(number).dirichlet(np.full(32, 0.5), size=4) + 0.01
    return np.log(weights)


def spoken(number, second, tokens=10):
    rng = np.random.default_rng((number, second))
    return np.argsort(-(domain(number) + rng.gumbel(size=(tokens, 4, 32))), axis=2)[:, :, :4].astype(np.int16)


def test_a_change_of_use_is_noticed_once_and_what_came_before_is_forgotten():
    kept, forgotten = keeper(), []
    for second in range(240):
        kept.add(spoken(second // 120, second), float(second), decode=True)
        if kept.forget_old_use(second + 0.5):
            forgotten.append(second)
    assert len(forgotten) == 1 and 120 + 28 <= forgotten[0] <= 120 + 45
    alone = keeper()
    for second in range(120, 240):
        alone.add(spoken(1, second), float(second), decode=True)
    demands = [one.trace(240.0).demand(32) for one in (kept, alone)]
    assert drift(demands[0] / demands[0].sum(), demands[1] / demands[1].sum()) < 0.15


@pytest.mark.parametrize("turns_s", [1, 3])
def test_mixed_use_is_no_change(turns_s):
    kept = keeper()
    for second in range(240):
        kept.add(spoken(second // turns_s % 2, second), float(second), decode=True)
        assert not kept.forget_old_use(second + 0.5)


def test_the_same_use_is_no_change():
    kept = keeper()
    for second in range(240):
        kept.add(spoken(0, second), float(second), decode=True)
        assert not kept.forget_old_use(second + 0.5)


def test_a_change_is_suspected_soon_and_not_for_ever():
    kept, suspected = keeper(), []
    for second in range(120):
        kept.add(spoken(0, second), float(second), decode=True)
        kept.forget_old_use(second + 0.5)
        assert not kept.changing
    for second in range(120, 240):  # so few tokens that they never are enough to forget the others
        kept.add(spoken(1, second, 2), float(second), decode=True)
        assert not kept.forget_old_use(second + 0.5)
        suspected.append(kept.changing)
    assert any(suspected[:50]) and not any(suspected[80:])


def test_rates_do_not_count_the_time_before_the_first_token():
    kept = keeper()
    for second in range(1000, 1020):
        kept.add(texts(0, 5), float(second), decode=True)
    assert kept.trace(1020.0).decode.tokens_per_s == pytest.approx(5.0, rel=0.1)


def test_prompts_alone_are_a_sample_too_but_not_a_large_one():
    kept = keeper()
    kept.add(texts(0, 400), 1.0, decode=False)
    assert kept.sample == 100
    for second in range(2, 20):
        kept.add(texts(second, 400), float(second), decode=False)
    assert kept.sample == 256
    kept.add(texts(0, 300), 20.0, decode=True)
    assert kept.sample == 300


def test_bytes_are_those_of_gossip():
    rates = np.array([[0.0, 1e-5, 4e-5, 6e-5, 1e-4, 0.01, 1.0, 37.0, 1e9]])
    assert quantised(rates)[0].tolist() == [pack_rate(rate) for rate in rates[0]]


def test_demand_is_told_in_turn_within_the_budget():
    news, demand = DemandNews(4, 32), np.full((4, 32), 2.0)
    told = [news.of(demand, budget_bytes=100) for _ in range(3)]
    assert [[entry.layer for entry in entries] for entries in told] == [[0, 1], [2, 3], []]
    assert told[0][0].rates_per_s() == pytest.approx([2.0] * 32, rel=0.05)
    assert not news.of(demand * 1.1), "noise is no news"
    demand[2, 7] = 4.0
    assert [entry.layer for entry in news.of(demand)] == [2]
    demand[:] = 0.0
    assert all(not entry.rates for entry in news.of(demand)) and RATES[0] == 0
