"""Who holds what is kept from one status to the next, and never after it has changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.gossip.values import Holdings
from meshmoe.gossip.view import View
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
