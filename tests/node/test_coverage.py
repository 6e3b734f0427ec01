"""Who holds what is kept from one status to the next, and never after it has changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip.values import Holdings
from meshmoe.gossip.view import View
from meshmoe.node.reporting import readiness_problem
from meshmoe.node.reporting_mesh import coverage_status

ME, OTHER = NodeId("a"), NodeId("b")


class Pool(set[ExpertId]):
    used_bytes = 0


def test_kept_until_something_changes() -> None:
    view, pool = View(), Pool()
    members: dict[NodeId, None] = {OTHER: None}
    machine = SimpleNamespace(missing_bytes=0)
    experts = [ExpertId(0, i) for i in range(4)]
    node: Any = SimpleNamespace(
        pool=pool, model=SimpleNamespace(experts=experts), settings=SimpleNamespace(node=ME), coverage=None
    )
    parts: Any = SimpleNamespace(
        custody=SimpleNamespace(machine=machine),
        gossip=SimpleNamespace(view=view),
        membership=SimpleNamespace(machine=SimpleNamespace(members=members)),
    )
    for name in (ME, OTHER):
        view.show(name, 1, suspect=False, values={})

    def holders() -> list[list[int]]:
        coverage = coverage_status(node, parts)
        assert coverage is not None
        assert coverage.covered == sum(map(bool, coverage.holders_by_layer[0]))
        return coverage.holders_by_layer[0]

    view.set(OTHER, "holdings/0", Holdings.of(0, [1, 2]))
    first = holders()
    assert first == [[], [1], [1], []]
    assert holders() is first

    pool.add(ExpertId(0, 0))
    pool.used_bytes = 100
    assert holders() == [[0], [1], [1], []]

    view.set(ME, "holdings/0", Holdings.of(0, [0, 1]))
    assert holders() == [[0], [0, 1], [1], []]

    machine.missing_bytes = 7  # told as it is, whatever was kept
    coverage = coverage_status(node, parts)
    assert coverage is not None
    assert coverage.missing_bytes == 7

    members[NodeId("aa")] = None  # takes b's place in the list of peers
    assert holders() == [[0], [0, 2], [2], []]

    view.hide(OTHER)
    assert holders() == [[0], [0], [], []]


def test_whether_every_expert_has_a_holder_follows_every_change() -> None:
    view, pool, experts = View(), Pool(), [ExpertId(0, i) for i in range(3)]
    node: Any = SimpleNamespace(
        phase="serving",
        lacking=None,
        pool=pool,
        model=SimpleNamespace(experts=experts),
        settings=SimpleNamespace(node=ME),
        serving=SimpleNamespace(engine=object()),
        parts=SimpleNamespace(
            custody=SimpleNamespace(machine=SimpleNamespace(missing_bytes=0), lost=set[ExpertId]()),
            gossip=SimpleNamespace(view=view),
        ),
    )

    def lacking() -> str:
        return str(readiness_problem(node) or "none").split(" ", 1)[0]

    view.show(OTHER, 1, suspect=False, values={})
    assert lacking() == "3"
    view.set(OTHER, "holdings/0", Holdings.of(0, [1, 2]))
    assert lacking() == "1"
    kept = node.lacking
    assert (lacking(), node.lacking) == ("1", kept)
    pool.add(ExpertId(0, 0))
    pool.used_bytes = 100
    assert lacking() == "none"
    view.hide(OTHER)
    assert lacking() == "2"
    node.parts.custody.lost.update(experts)
    assert lacking() == "none"
