"""The simulation without queues is arithmetic; with them, work at one place waits its turn."""

import numpy as np
import pytest

from meshmoe.bench.events import Request, Simulation, poisson_arrivals
from tests.placement.worlds import small_world


def world_of():
    return small_world(nodes=2, layers=2, experts=4, redundancy=2.0)


def one_token(rows):
    """A step whose layers call experts 0 and 1 with so many rows each."""
    step = np.zeros((2, 4), np.int32)
    step[:, :2] = rows
    return step


def held_by(world, node):
    holders = np.zeros((2, 2, 4), bool)
    holders[node] = True
    return holders


def test_all_at_home_is_compute():
    world, spec = world_of(), world_of().specs[0]
    found = Simulation(world, held_by(world, 0), 1e-3, 0.0).run([Request(0, 5.0, [one_token(1)], [1])])
    assert found.total_s == [pytest.approx(2 * (1e-3 + 2 * spec.expert_s + 2 * spec.row_s))]
    assert found.first_s == found.total_s


def test_away_is_round_trip_bytes_and_compute_there():
    world, peer = world_of(), world_of().specs[1]
    found = Simulation(world, held_by(world, 1), 1e-3, 1e-4).run([Request(0, 0.0, [one_token(3)], [3])])
    wire_s = 2 * 6 * world.shape.row_bytes * world.byte_s[0, 1]
    layer_s = 1e-3 + 2e-4 + world.rtt_s[0, 1] + wire_s + peer.call_s + 2 * peer.expert_s + 6 * peer.row_s
    assert found.total_s == [pytest.approx(2 * layer_s)]


def test_requests_at_once_wait_for_the_device():
    world = world_of()
    requests = [Request(0, 0.0, [one_token(1)] * 3, [1] * 3) for _ in range(4)]
    alone = Simulation(world, held_by(world, 0), 1e-3, 0.0).run(requests[:1]).total_s[0]
    together = Simulation(world, held_by(world, 0), 1e-3, 0.0).run(requests)
    assert len(together.total_s) == 4
    assert max(together.total_s) == pytest.approx(4 * alone, rel=0.05)
    assert all(first < total for first, total in zip(sorted(together.first_s), sorted(together.total_s), strict=True))


def test_arrivals_have_their_rate():
    times = poisson_arrivals(np.random.default_rng(0), 10.0, 4000)
    assert (np.diff(times) > 0).all()
    assert times[-1] / 4000 == pytest.approx(10.0, rel=0.05)
