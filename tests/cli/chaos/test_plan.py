"""Plans of faults, and what a report says of a run."""

from __future__ import annotations

import io
import itertools
import xml.etree.ElementTree as ElementTree
from random import Random

import pytest
import trio
import trio.testing
from click.testing import CliRunner
from rich.console import Console

from meshmoe.cli.chaos.load import Load, Request
from meshmoe.cli.chaos.plan import CALM_S, HEAL_S, KINDS, RESTARTS, Fault, make_plan
from meshmoe.cli.chaos.report import Findings, show, timeline
from meshmoe.cli.main import cli

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


@pytest.mark.parametrize("seed", range(20))
def test_what_takes_nothing_away_is_done_to_nodes_that_are_there(seed):
    plan = make_plan(seed, NODES, 300)
    for gone in (fault for fault in plan if fault.kind in RESTARTS):
        meanwhile = [f for f in plan if gone.at_s < f.at_s + f.lasts_s and f.at_s < gone.at_s + gone.lasts_s]
        assert [fault for fault in meanwhile if fault.node == gone.node] == [gone]


def test_other_seeds_are_other_plans():
    assert len({tuple(make_plan(seed, NODES, 300)) for seed in range(20)}) == 20


def test_chosen_kinds_only():
    assert {fault.kind for fault in make_plan(1, NODES, 300, ["kill", "noise"])} == {"kill", "noise"}


def test_flags_that_cannot_be_told_apart_are_one_line():
    result = CliRunner().invoke(cli, ["chaos", "--join", "--drafts 'off"])
    assert result.exit_code == 2
    assert "--join: No closing quotation" in result.stderr


def test_the_timeline_is_an_svg_with_every_fault_and_request():
    spans = [(Fault(1.0, "kill", "n2", 5.0), 1.0, 6.5), (Fault(9.0, "noise", "n3", 2.0), 9.0, 11.0)]
    requests = [Request("n1", 0.0, 2.0, "finished"), Request("n2", 1.0, 1.5, "cut", "gone")]
    root = ElementTree.fromstring(timeline(Findings(3, 30.0, 4), NODES, spans, requests))
    drawn = [text.text for text in root.iter("{http://www.w3.org/2000/svg}title")]
    assert drawn == ["kill 1-6 s", "noise 9-11 s"]
    assert len([r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("opacity")]) == 2


def said(findings: Findings) -> str:
    console = Console(file=io.StringIO(), width=80)
    show(console, findings, Load({}, {}, lambda: 0.0, Random(0), lambda _node, _since_s: False))
    return console.file.getvalue()


def test_a_report_does_not_claim_what_was_not_looked_at():
    text = said(Findings(3, 30.0, 4, left_out=2, problems=["n2 has ended with code 1: out of luck"]))
    assert "experts lost: not counted; all agree on who holds what: never" in text
    assert "memory and descriptors: not measured, no process lived for long enough" in text
    assert "left out: 2" in text
    assert "PROBLEM: n2 has ended with code 1: out of luck" in text
    assert text.endswith("promises were broken\n")


def test_a_report_of_a_good_run():
    good = Findings(
        3, 30.0, 4, {"kill": 2}, lost_experts=0, agreed_after_s=7.4, memory_growth=1.03, descriptor_growth=-1
    )
    text = said(good)
    assert "experts lost: 0; all agree on who holds what: 7 s after the last fault" in text
    assert "memory: at most 1.03 times that of the first minute; descriptors: at most -1" in text
    assert text.endswith("every promise was kept\n")


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


class SlowNode:
    """Answers a request a second after it came, with tokens that are right or not."""

    exit_code = None

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    async def stream(self, _body):
        await trio.sleep(1.0)
        for token in self.tokens:
            yield {"choices": [{"meshmoe": {"token_ids": [token]}}]}


@pytest.mark.parametrize(
    ("tokens", "outcome"), [([1, 2, 3], "finished"), ([1, 2], "wrong"), ([1, 2, 4], "wrong"), ([1, 2, 3, 4], "wrong")]
)
def test_a_request_that_is_under_way_at_the_end_counts(autojump_clock, tokens, outcome):
    async def main() -> Load:
        load = Load({"n1": SlowNode(tokens)}, {"a": [1, 2, 3]}, trio.current_time, Random(0), lambda *_: False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run, 2)
            await trio.sleep(0.1)
            load.finish()
        return load

    load = trio.run(main, clock=autojump_clock)
    assert dict(load.counts) == {outcome: 2}


def test_a_request_that_never_ends_is_hung_unless_its_node_was_gone(autojump_clock):
    class Silent(SlowNode):
        async def stream(self, _body):
            await trio.sleep_forever()
            yield {}

    async def main(gone: bool) -> Load:
        load = Load({"n1": Silent([])}, {"a": [1]}, trio.current_time, Random(0), lambda *_: gone)
        await load.ask("n1")
        return load

    assert dict(trio.run(main, False, clock=autojump_clock).counts) == {"hung": 1}
    assert dict(trio.run(main, True, clock=trio.testing.MockClock(autojump_threshold=0)).counts) == {"cut": 1}
