"""What drafts change about a placement's cost, on small worlds where it can be said in other words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from meshmoe.bench.passes import LENGTHS, ForDrafts, passes_of
from meshmoe.placement.cost import bill
from meshmoe.placement.drafted import DraftDemand, acceptance, draft_bill, drafting_world, tokens_per_pass
from meshmoe.placement.policies import Negotiated
from tests.placement.worlds import small_world


def demands_of(world, draft_s=1e-4):
    return [DraftDemand(passes_of(trace.decode.experts[None], world.shape.experts), draft_s) for trace in world.traces]


@pytest.fixture(scope="module")
def world():
    return small_world(prefill=True)


@pytest.fixture(scope="module")
def holders(world):
    return Negotiated().place(world)


def test_chances_and_tokens():
    assert acceptance(1.0) == 1.0
    assert 0.2 < acceptance(0.0) < acceptance(0.5) < 1.0
    assert tokens_per_pass(0.5, 0) == 1.0
    assert tokens_per_pass(0.5, 3) == 1.875
    assert tokens_per_pass(1.0, 6) == 7.0


def test_passes_are_the_tokens_one_after_the_other(world):
    sets = world.traces[0].decode.experts
    passes = passes_of(sets[None], world.shape.experts)
    assert tuple(passes) == LENGTHS
    second = passes[2].experts[1, 3]
    assert set(second[second >= 0].tolist()) == set(sets[3:6, 3].ravel().tolist())
    assert passes[2].rows[1].sum() == 3 * world.shape.layers * sets.shape[2]


def test_a_slow_link_asks_for_drafts_and_no_link_for_none(world, holders):
    demand = demands_of(world)[0]
    found = draft_bill(world, 0, demand, holders)
    plain = bill(world, 0, world.traces[0].decode, holders)
    assert found.length > 0 and found.mean_s < plain.mean_s
    of_pass = bill(world, 0, demand.passes[found.length], holders)
    assert found.rounds == pytest.approx(of_pass.rounds / tokens_per_pass(acceptance(plain.hit), found.length))
    assert plain.rounds < of_pass.rounds < (found.length + 1) * plain.rounds, "rows wait together"
    everywhere = np.ones_like(holders)
    at_home = draft_bill(world, 0, demand, everywhere)
    assert (at_home.length, at_home.rounds, at_home.chance) == (0, 0.0, 1.0)
    assert draft_bill(world, 0, replace(demand, draft_s=1.0), holders).length == 0, "drafting that takes a second"


def test_a_call_sent_away_is_priced_at_the_tokens_that_it_costs(world, holders):
    demands = demands_of(world)
    seen = drafting_world(world, demands, holders)
    for node, trace in enumerate(world.traces):
        best = draft_bill(world, node, demands[node], holders)
        tokens_per_s = trace.decode.tokens_per_s
        passes = seen.traces[node].decode
        assert passes.tokens_per_s / (best.length + 1) * best.tokens == pytest.approx(tokens_per_s)
        hit = bill(world, node, trace.decode, holders).hit
        pass_s, step = best.mean_s * best.tokens, 1e-5

        def cost(share, length=best.length, rate=tokens_per_s, pass_s=pass_s):
            return rate * pass_s / tokens_per_pass(acceptance(share), length)

        slope = (cost(hit - step) - cost(hit + step)) / (2 * step)
        rows = sum(kind.rates @ kind.rows.sum(axis=(1, 2)) for kind in (passes, seen.traces[node].prefill))
        price_s = 2 * world.shape.row_bytes * (seen.byte_s[node] - world.byte_s[node])
        others = [other for other in range(len(world.nodes)) if other != node]
        assert price_s[others] * rows == pytest.approx(np.full(len(others), slope), rel=1e-3)
        assert price_s[node] == 0


def test_what_is_placed_for_drafts_keeps_its_rules_and_is_better_with_them():
    gains = []
    for seed in range(6):
        world = small_world(seed, links=[(0, 1, 20.0), (0, 2, 20.0), (1, 2, 20.0)])
        demands = demands_of(world)
        plain, drafted = Negotiated().place(world), ForDrafts(demands).place(world)
        world.check(drafted)
        costs = [
            sum(draft_bill(world, node, demand, holders).mean_s for node, demand in enumerate(demands))
            for holders in (plain, drafted)
        ]
        gains.append(costs[0] / costs[1])
    assert np.mean(gains) > 1.0, gains
