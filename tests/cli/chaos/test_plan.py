"""Plans of faults, and what a report says of a run."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree

import pytest

from meshmoe.cli.chaos.load import Request
from meshmoe.cli.chaos.plan import CALM_S, HEAL_S, KINDS, Fault, make_plan
from meshmoe.cli.chaos.report import Findings, timeline

NODES = ["n1", "n2", "n3", "n4"]


@pytest.mark.parametrize("seed", range(20))
def test_one_thing_at_a_time_is_taken_away_and_all_is_whole_again_before_the_end(seed):
    plan = make_plan(seed, NODES, 600)
    assert plan == make_plan(seed, NODES, 600) == sorted(plan)
    assert plan[0].at_s >= CALM_S
    assert {fault.kind for fault in plan} == set(KINDS), "in ten minutes every kind has its turn"
    assert "n1" not in {fault.node for fault in plan}
    taking = [fault for fault in plan if KINDS[fault.kind].takes_away]
    for one, next_one in itertools.pairwise(taking):
        assert one.at_s + one.lasts_s + HEAL_S <= next_one.at_s
    assert max(fault.at_s + fault.lasts_s for fault in plan) + HEAL_S <= 600


def test_other_seeds_are_other_plans():
    assert len({tuple(make_plan(seed, NODES, 300)) for seed in range(20)}) == 20


def test_chosen_kinds_only():
    assert {fault.kind for fault in make_plan(1, NODES, 300, ["kill", "noise"])} == {"kill", "noise"}


def test_the_timeline_is_an_svg_with_every_fault_and_request():
    spans = [(Fault(1.0, "kill", "n2", 5.0), 1.0, 6.5), (Fault(9.0, "noise", "n3", 2.0), 9.0, 11.0)]
    requests = [Request("n1", 0.0, 2.0, "finished"), Request("n2", 1.0, 1.5, "cut", "gone")]
    root = ElementTree.fromstring(timeline(Findings(3, 30.0, 4), NODES, spans, requests))
    drawn = [text.text for text in root.iter("{http://www.w3.org/2000/svg}title")]
    assert drawn == ["kill 1-6 s", "noise 9-11 s"]
    assert len([r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("opacity")]) == 2
