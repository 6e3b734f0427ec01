"""The guardian rule: covers what fits, keeps budgets, moves little, and agrees everywhere."""

from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.placement.guardian import guardian_plan

MODEL = [(ExpertId(layer, index), 100) for layer in range(8) for index in range(32)]
TOTAL = sum(size for _, size in MODEL)


def nodes(*shares):
    return {NodeId(f"n{i}"): int(share * TOTAL) for i, share in enumerate(shares)}


@given(st.lists(st.integers(0, 2 * TOTAL), min_size=1, max_size=8), st.randoms())
def test_budgets_and_coverage_hold_whatever_the_capacities(capacities, rng):
    capacity = {NodeId(f"n{i}"): c for i, c in enumerate(capacities)}
    plan = guardian_plan(MODEL, capacity)
    for node, experts in plan.by_node.items():
        assert len(experts) == len(set(experts))
        assert len(experts) * 100 <= capacity[node]
    held = {e for experts in plan.by_node.values() for e in experts}
    assert held.isdisjoint(plan.uncovered)
    assert len(held) + len(plan.uncovered) == len(MODEL)
    room = sum(c // 100 for c in capacities)
    assert plan.missing_bytes == max(0, len(MODEL) - room) * 100
    shuffled = list(MODEL)
    rng.shuffle(shuffled)
    assert guardian_plan(shuffled, dict(reversed(capacity.items()))) == plan


def test_share_follows_capacity():
    plan = guardian_plan(MODEL, nodes(0.5, 0.5, 1.0))
    first = [len(experts) for experts in plan.by_node.values()]
    assert sum(first) == 2 * len(MODEL)
    assert all(len(e) * 100 == c for e, c in zip(plan.by_node.values(), nodes(0.5, 0.5, 1.0).values(), strict=True))


def test_spare_capacity_becomes_second_holders_on_other_nodes():
    plan = guardian_plan(MODEL, nodes(0.7, 0.7, 0.7))
    holders = {e: [n for n, held in plan.by_node.items() if e in held] for e, _ in MODEL}
    assert all(holders.values())
    copies = sum(len(h) for h in holders.values())
    assert copies == int(0.7 * TOTAL) // 100 * 3
    assert sum(len(h) >= 2 for h in holders.values()) > 0.8 * (copies - len(MODEL))


def test_a_joining_node_moves_few_experts():
    before = guardian_plan(MODEL, nodes(1.0, 1.0, 1.0))
    assert all(len(e) == len(MODEL) for e in before.by_node.values())
    three, four = nodes(0.5, 0.5, 0.5), nodes(0.5, 0.5, 0.5, 0.5)
    old, new = guardian_plan(MODEL, three), guardian_plan(MODEL, four)
    moved = sum(len(set(new.by_node[n]) - set(old.by_node[n])) for n in three)
    assert moved < 0.4 * len(MODEL)


def test_unequal_sizes_are_counted_in_bytes():
    model = [(ExpertId(0, i), 10 if i % 2 else 1000) for i in range(10)]
    plan = guardian_plan(model, {NodeId("a"): 3000, NodeId("b"): 2050})
    assert not plan.uncovered
    short = guardian_plan(model, {NodeId("a"): 1000})
    assert short.missing_bytes == 5050 - sum(size for e, size in model if e in short.by_node["a"])
