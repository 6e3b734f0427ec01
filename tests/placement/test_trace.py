"""Traces keep whole routing sets; demand is what they add up to."""

import numpy as np
import pytest

from meshmoe.placement.trace import Trace, decode_steps, no_steps, prefill_steps


def test_a_chunk_is_one_step_of_distinct_experts():
    chunk = np.array([[[0, 1]], [[1, 2]], [[1, 0]]])  # 3 tokens, 1 layer, top-2
    steps = prefill_steps([chunk], 2.0, 4)
    used = steps.experts[0, 0] >= 0
    assert steps.experts[0, 0][used].tolist() == [0, 1, 2]
    assert steps.rows[0, 0][used].tolist() == [2, 3, 1]
    assert steps.tokens_per_s == 6.0


def test_demand_counts_rows_of_both_kinds_a_second():
    sets = np.array([[[0, 1], [2, 3]], [[0, 2], [2, 0]]])
    trace = Trace(decode_steps(sets, 4.0), prefill_steps([sets], 1.0, 4))
    assert trace.demand(4).tolist() == [[6.0, 3.0, 3.0, 0.0], [3.0, 0.0, 6.0, 3.0]]
    assert trace.steps_per_s == 5.0


def test_scaling_and_taking():
    steps = decode_steps(np.zeros((10, 2, 1), int), 5.0)
    assert steps.scaled(2.0).tokens_per_s == pytest.approx(10.0)
    assert steps.take(slice(0, 5)).tokens_per_s == pytest.approx(2.5)
    assert len(no_steps(3)) == 0
    with pytest.raises(ValueError, match="no_steps"):
        prefill_steps([], 1.0, 4)
