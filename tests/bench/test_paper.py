"""The paper's setting is as stated, and low evenness means tasks that differ."""

import numpy as np
import pytest

from meshmoe.bench.paper import MODELS, Mesh, as_task, draw_sets, drawn_tasks, recorded_task, requests_of, setting
from meshmoe.placement.policies import DanceMoE


def tasks_of(model, evenness):
    return [as_task(model, task) for task in drawn_tasks(model, evenness, 3, np.random.default_rng(0))]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_capacities_are_as_stated(model):
    world = setting(model, tasks_of(model, 0.3), 10.0, 0, Mesh())
    assert world.capacity_bytes.sum() / world.shape.total_bytes == pytest.approx(model.redundancy, abs=0.01)
    assert world.capacity_bytes[2] / world.capacity_bytes[0] == pytest.approx(2, abs=0.03)
    world.check(DanceMoE().place(world))


def test_tasks_differ_more_where_evenness_is_low():
    apart = []
    for evenness in (0.1, 1.0):
        tasks = drawn_tasks(MODELS[1], evenness, 3, np.random.default_rng(0))
        apart.append(np.abs(tasks[0] - tasks[1]).sum(axis=1).mean())
    assert apart[0] > apart[1]


def test_sets_are_distinct_experts_as_often_as_they_are_popular():
    rng = np.random.default_rng(0)
    popularity = np.array([[0.7, 0.2, 0.05, 0.05]])
    sets = draw_sets(rng, popularity, 4000, 2)
    assert (np.diff(np.sort(sets, axis=2), axis=2) > 0).all()
    assert np.mean(sets[:, 0, 0] == 0) == pytest.approx(0.7, abs=0.03)


def test_a_request_has_a_prompt_and_tokens():
    requests = requests_of(MODELS[0], tasks_of(MODELS[0], 0.3), 10.0, 2, 0)
    assert len(requests) == 6
    for request in requests:
        assert [int(step.sum()) for step in request.steps] == [2 * 32 * tokens for tokens in request.tokens]


def test_more_servers_share_the_same_memory():
    tasks = [as_task(MODELS[1], task) for task in drawn_tasks(MODELS[1], 0.3, 7, np.random.default_rng(0))]
    world = setting(MODELS[1], tasks, 10.0, 0, Mesh(servers=7, mbit_per_s=100))
    assert world.capacity_bytes.sum() / world.shape.total_bytes == pytest.approx(1.4, abs=0.01)
    assert world.capacity_bytes[5] == pytest.approx(2 * world.capacity_bytes[6], rel=0.05)
    assert world.byte_s[0, 1] == pytest.approx(8e-8)


def test_a_recorded_task_reads_what_was_recorded():
    windows = np.arange(2 * 5 * 3 * 2).reshape(2, 5, 3, 2)
    sets = recorded_task(windows)(np.random.default_rng(0), 7)
    assert sets.shape == (7, 3, 2)
    assert {tuple(one) for one in sets[:, 0]} <= {tuple(one) for one in windows[:, :, 0].reshape(-1, 2)}
