"""A node that drafts over slow links reckons in rounds per accepted token; any other one as it did before."""

import random
from dataclasses import replace

import numpy as np
import pytest

from meshmoe.placement.drafted import tokens_per_pass
from meshmoe.placement.exchange import ExchangeConfig, Links, PeerPlan
from meshmoe.placement.exchange.plan import Plan
from meshmoe.placement.exchange.standpoint import Standpoint
from meshmoe.placement.live.demand import RUN, DemandKeeper
from meshmoe.placement.live.drafts import FAR_S, DraftsSeen, as_passes, drafting
from meshmoe.placement.live.observer import Observer
from meshmoe.placement.live.occasion import DRAFTS_LAST_S, Occasion
from meshmoe.placement.seed import guardian_owners
from tests.placement.live.used import plans_without_and_for_drafts
from tests.placement.worlds import routing, small_world

SEEN = DraftsSeen(passes=100, tokens=300, drafted=400, depth=400, looked_up=0, decode_s=9.0, hit=0.6)
EVEN = np.ones((2, 8))


def keeper(tokens=400):
    kept = DemandKeeper(4, 16, 60.0, random.Random(1), 0.0)
    sets = routing(np.random.default_rng(3), tokens, 4, 16, 2, 0.3).astype(np.int16)
    for at, token in enumerate(sets):
        kept.add(token[None], at / 20, decode=True)
    return kept, sets


@pytest.mark.parametrize(
    ("seen", "far_s"),
    [
        (None, 1.0),
        (SEEN, FAR_S / 2),
        (SEEN._replace(passes=20, tokens=60, drafted=80), 1.0),
        (SEEN._replace(drafted=0, tokens=100), 1.0),
        (SEEN._replace(drafted=60), 1.0),
        (SEEN._replace(tokens=100), 1.0),
        (SEEN._replace(hit=1.0), 1.0),
    ],
)
def test_where_drafts_do_not_pay_or_links_are_fast_nothing_changes(seen, far_s):
    assert drafting(seen, far_s) is None


def test_what_a_call_at_home_saves_is_what_a_token_more_a_pass_saves():
    how = drafting(SEEN, FAR_S)
    assert (how.rows, how.tokens) == (5, 3.0)
    pass_s, part = SEEN.decode_s / SEEN.passes, 1e-5
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if tokens_per_pass(middle, 4) > 3.0 else (middle, high)
    better = low + part * (1 - low) / (1 - SEEN.hit)
    saved_s = pass_s - pass_s * 3.0 / tokens_per_pass(better, 4)
    assert how.home_s == pytest.approx(saved_s / part, rel=1e-3)


def test_branches_beside_each_other_make_a_pass_wider_not_its_drafts_worse():
    chain, tree = drafting(SEEN, FAR_S), drafting(SEEN._replace(drafted=800), FAR_S)
    assert (chain.rows, tree.rows) == (5, 9)
    assert tree[1:] == chain[1:]


def test_drafts_that_are_looked_up_are_no_reason_to_have_experts_at_home():
    drafted, half, found = (drafting(SEEN._replace(looked_up=depth), FAR_S) for depth in (0, 200, 400))
    assert half.home_s == pytest.approx(drafted.home_s / 2)
    assert found.home_s == 0.0
    assert found[:2] == drafted[:2], "passes wait as they did"


def test_lengths_that_vary_do_not_tell_more_than_drafts_can():
    how = drafting(SEEN._replace(drafted=140, depth=140, tokens=220), FAR_S)
    assert how.rows == 2 and how.tokens < 2


def test_passes_are_tokens_that_followed_each_other():
    kept, sets = keeper(4 * RUN)
    passes = kept.passes(4, 2.0)
    assert len(passes) == 4 * (RUN // 4) and (passes.tokens == 4).all()
    for number, first in enumerate((0, 4, RUN, RUN + 4)):
        for layer in range(4):
            counts = np.bincount(sets[first : first + 4, layer].ravel(), minlength=16)
            found = np.zeros(16, int)
            used = passes.experts[number, layer] >= 0
            found[passes.experts[number, layer][used]] = passes.rows[number, layer][used]
            assert (found == counts).all()


def test_there_are_as_many_passes_as_tokens_ask_for():
    kept, _ = keeper()
    trace, how = kept.trace(20.0), drafting(SEEN, FAR_S)
    passes, away_s = as_passes(kept.passes(how.rows, 20.0), trace.decode, how)
    assert passes.rates.sum() * how.tokens == pytest.approx(trace.decode.tokens_per_s)
    assert away_s * how.rows * 4 * 2 == pytest.approx(how.home_s), "all calls of a pass: rows, layers, top-2"


def test_a_node_thinks_in_passes_only_over_slow_links():
    plain, fast, slow = (Observer(keeper()[0], 4, 16) for _ in range(3))
    (before,) = (e for e in plain.look(20.0).events if hasattr(e, "trace"))
    (same,) = (e for e in fast.look(20.0, SEEN, FAR_S / 2).events if hasattr(e, "trace"))
    (other,) = (e for e in slow.look(20.0, SEEN, FAR_S).events if hasattr(e, "trace"))
    assert (same.trace.decode.experts == before.trace.decode.experts).all() and same.away_s == 0
    assert other.away_s > 0 and (other.trace.decode.tokens == 5).all()


def test_a_node_that_nobody_has_asked_for_a_day_has_nothing_to_place_for_and_no_broken_prices():
    idle = Observer(keeper()[0], 4, 16)
    idle.look(20.0, SEEN, FAR_S)
    (thought,) = (e for e in idle.look(86_400.0, SEEN, FAR_S).events if hasattr(e, "trace"))
    assert thought.away_s == 0.0
    assert thought.trace.decode.tokens_per_s == 0.0


def test_that_drafts_begin_to_pay_is_a_reason_to_think_once_it_lasts():
    occasion = Occasion()
    assert occasion.is_now(400, EVEN, 0.0, changing=False)
    assert not occasion.is_now(400, EVEN, 1.0, changing=False, drafts_pay=True)
    assert not occasion.is_now(400, EVEN, 2.0, changing=False), "it did not last"
    assert not occasion.is_now(400, EVEN, 3.0, changing=False, drafts_pay=True)
    assert not occasion.is_now(400, EVEN, DRAFTS_LAST_S + 2.9, changing=False, drafts_pay=True)
    assert not occasion.is_now(400, EVEN, DRAFTS_LAST_S + 3.0, changing=True, drafts_pay=True)
    assert occasion.is_now(400, EVEN, DRAFTS_LAST_S + 3.0, changing=False, drafts_pay=True)
    assert not occasion.is_now(400, EVEN, 10 * DRAFTS_LAST_S, changing=False, drafts_pay=True)


def test_rows_sent_away_cost_more_and_moves_do_not():
    world = small_world(nodes=3)
    owner = guardian_owners(world.shape, world.nodes, world.capacity_bytes)
    plan = Plan(world.shape, world.specs[0].capacity_bytes, owner == 0, owner == 0)
    row_s = np.array([spec.row_s for spec in world.specs])
    links = Links(world.nodes, world.call_s(1.0), world.byte_s, row_s, world.near)
    peers = {
        name: PeerPlan(1, owner == i, owner == i, world.traces[i].demand(world.shape.experts))
        for i, name in enumerate(world.nodes)
        if i
    }
    trace = world.traces[0]
    costs, moves = [], []
    for away_s in (0.0, 0.5):
        stand = Standpoint(ExchangeConfig(), world.nodes[0], world.shape, replace(world.specs[0]), trace, plan)
        stand.trace(trace, away_s)
        stand.hear(peers, links)
        side = stand.side(world.nodes[1])
        costs.append(side.pricer.total(plan.held))
        moves.append(side.move_s)
    sent = (trace.demand(world.shape.experts) * ~plan.held).sum()
    assert costs[1] - costs[0] == pytest.approx(0.5 * sent)
    assert moves[0] == moves[1]


def test_over_slow_links_a_mesh_ends_cheaper_a_written_token():
    (_, without), (_, for_drafts) = plans_without_and_for_drafts("wan", 1.5)
    assert sum(one.mean_s for one in for_drafts) < 0.96 * sum(one.mean_s for one in without), "on unseen texts"


def test_over_fast_links_the_same_plan_is_made_as_without_drafts():
    (without, _), (with_drafts, _) = plans_without_and_for_drafts("lan", 1.5, seconds=25)
    assert (without == with_drafts).all()
