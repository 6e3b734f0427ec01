"""The vectorised cost against the same formula written as loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.placement.cost import NOBODY_S, bill, branches, mesh_cost, node_cost
from tests.placement.worlds import small_world


def random_holders(world, seed):
    rng = np.random.default_rng(seed)
    holders = rng.random((len(world.nodes), world.shape.layers, world.shape.experts)) < 0.4
    holders[rng.integers(len(world.nodes)), ~holders.any(axis=0)] = True
    return holders


def slow_step_s(world, node, steps, step, holders):
    """Seconds, and layers that wait, of one step."""
    total, waits = 0.0, 0
    for layer in range(world.shape.layers):
        local_s, slowest_s, wire_s = 0.0, 0.0, 0.0
        for expert, rows in zip(steps.experts[step, layer], steps.rows[step, layer], strict=True):
            if expert < 0:
                continue
            if holders[node, layer, expert]:
                local_s += world.specs[node].expert_s + rows * world.specs[node].row_s
                continue
            options = []
            for other in np.flatnonzero(holders[:, layer, expert]):
                spec = world.specs[other]
                base_s = world.rtt_s[node, other] + spec.call_s + spec.queue_s + spec.expert_s
                byte_s = 2 * world.shape.row_bytes * world.byte_s[node, other]
                one_row_s = base_s + spec.row_s + byte_s
                options.append((one_row_s, base_s + rows * spec.row_s, rows * byte_s))
            _, branch_s, bytes_s = min(options)
            slowest_s = max(slowest_s, branch_s)
            wire_s += bytes_s
        total += max(local_s, slowest_s) + wire_s
        waits += slowest_s > 0
    return total, waits


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_the_bill_is_what_the_loops_say(seed, prefill):
    world = small_world(seed, tokens=40, prefill=prefill, links=[(0, 1, 1.0), (1, 2, 4.0)])
    holders = random_holders(world, seed)
    for node in range(3):
        steps = world.traces[node].prefill if prefill else world.traces[node].decode
        slow = np.array([slow_step_s(world, node, steps, i, holders) for i in range(len(steps))])
        found = bill(world, node, steps, holders)
        assert found.mean_s == pytest.approx(slow[:, 0].sum() / steps.tokens.sum())
        assert found.rounds == pytest.approx(slow[:, 1].mean())
        assert found.p99_s == pytest.approx(np.sort(slow[:, 0])[int(np.ceil(0.99 * len(slow))) - 1])


def test_holding_everything_costs_compute_and_no_rounds():
    world = small_world()
    holders = np.ones((3, 4, 8), bool)
    found = bill(world, 0, world.traces[0].decode, holders)
    assert (found.rounds, found.hit, found.wire_bytes) == (0.0, 1.0, 0.0)
    assert found.mean_s == pytest.approx(4 * 2 * (world.specs[0].expert_s + world.specs[0].row_s))


def test_cost_is_seconds_a_second_over_both_kinds():
    world = small_world(prefill=True)
    holders = random_holders(world, 1)
    expected = 0.0
    for node, trace in enumerate(world.traces):
        for steps in (trace.decode, trace.prefill):
            found = bill(world, node, steps, holders)
            expected += found.mean_s * found.tokens_per_s
    assert mesh_cost(world, holders) == pytest.approx(expected)
    assert mesh_cost(world, holders) == pytest.approx(sum(node_cost(world, n, holders) for n in range(3)))


def test_more_copies_never_cost_more_where_peers_are_not_faster():
    world = small_world(3)
    holders = random_holders(world, 3)
    more = holders.copy()
    more[0, 2, :] = True
    assert node_cost(world, 0, more) <= node_cost(world, 0, holders)


def test_an_expert_without_holder_is_worse_than_anything():
    world = small_world()
    holders = random_holders(world, 0)
    holders[:, 1, 3] = False
    assert branches(world, 0, holders).call_s[1, 3] == NOBODY_S
