"""The comparison's cells are what they say, and ours keeps its promise in one of each kind."""

import pytest

from meshmoe.bench.placement import LINKS, REDUNDANCIES, Cell, cells, score_policy, worlds
from meshmoe.bench.recorded import load_recorded
from meshmoe.bench.tables import score_tables, verdicts
from meshmoe.placement.policies import DanceMoE, GlobalEplb, HierarchicalEplb, Negotiated


def test_cells_cover_every_setting():
    assert len(cells(["a", "b"], quick=False)) == 2 * len(REDUNDANCIES) * 2 * len(LINKS)


def test_capacity_is_the_redundancy_asked_for():
    fit, judge = worlds(load_recorded("edge-12m"), Cell("edge-12m", 1.13, "1:1:2", "wifi"))
    assert fit.capacity_bytes.sum() / fit.shape.total_bytes == pytest.approx(1.13, abs=0.01)
    assert fit.capacity_bytes[2] / fit.capacity_bytes[0] == pytest.approx(2, abs=0.03)
    assert fit.rtt_s[0, 1] == pytest.approx(6e-3)
    assert (fit.traces[0].decode.experts != judge.traces[0].decode.experts).any()


@pytest.mark.parametrize(("redundancy", "fewer"), [(1.0, 0.15), (1.5, 0.15)])
def test_ours_beats_the_published_on_text_it_has_not_seen(redundancy, fewer):
    cell = Cell("edge-12m", redundancy, "equal", "wan")
    fit, judge = worlds(load_recorded("edge-12m"), cell, windows=7)
    policies = (DanceMoE(), GlobalEplb(), HierarchicalEplb(), Negotiated())
    scores = [score_policy(policy, fit, judge, cell) for policy in policies]
    ours = scores[-1]
    assert all(ours.token_ms < other.token_ms and ours.request_ms < other.request_ms for other in scores[:-1])
    assert all(ours.rounds < (1 - fewer) * other.rounds for other in scores[:-1])
    assert "in 1 of 1 cells" in verdicts(scores)
    assert score_tables(scores).count("\n| ") == 5
