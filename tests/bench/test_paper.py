"""The paper's setting is as stated, and low evenness means tasks that differ."""

import numpy as np
import pytest

from meshmoe.bench.paper import MODELS, draw_sets, requests_of, setting
from meshmoe.placement.policies import DanceMoE


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_capacities_are_as_stated(model):
    world, _ = setting(model, 0.3, 10.0, 0)
    assert world.capacity_bytes.sum() / world.shape.total_bytes == pytest.approx(model.redundancy, abs=0.01)
    assert world.capacity_bytes[2] / world.capacity_bytes[0] == pytest.approx(2, abs=0.03)
    world.check(DanceMoE().place(world))


def test_tasks_differ_more_where_evenness_is_low():
    apart = []
    for evenness in (0.1, 1.0):
        _, tasks = setting(MODELS[1], evenness, 10.0, 0)
        apart.append(np.abs(tasks[0] - tasks[1]).sum(axis=1).mean())
    assert apart[0] > apart[1]


def test_sets_are_distinct_experts_as_often_as_they_are_popular():
    rng = np.random.default_rng(0)
    popularity = np.array([[0.7, 0.2, 0.05, 0.05]])
    sets = draw_sets(rng, popularity, 4000, 2)
    assert (np.diff(np.sort(sets, axis=2), axis=2) > 0).all()
    assert np.mean(sets[:, 0, 0] == 0) == pytest.approx(0.7, abs=0.03)


def test_a_request_has_a_prompt_and_tokens():
    _, tasks = setting(MODELS[0], 0.3, 10.0, 0)
    requests = requests_of(MODELS[0], tasks, 10.0, 2, 0)
    assert len(requests) == 6
    for request in requests:
        assert [int(step.sum()) for step in request.steps] == [2 * 32 * tokens for tokens in request.tokens]
