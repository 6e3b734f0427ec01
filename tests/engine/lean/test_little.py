"""Little calls: the bits of the general way, and a plain no to everything that is not one."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshmoe.core.ids import ExpertId
from meshmoe.engine.dispatch import TOGETHER_BYTES_MAX, TOGETHER_ROWS_MAX
from meshmoe.engine.kernels.choice import all_finite, compute
from meshmoe.engine.lean.little import ROWS_MAX, LittleCalls, serve_rows
from meshmoe.engine.lean.resident import ResidentTable
from meshmoe.engine.model import load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.remote import LittleCall
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.wire.tensors import pack_tensor

LAYER, LACKING = 1, 3


class Case:
    """A model, all of whose experts are resident but one."""

    def __init__(self, checkpoint, dtype):
        self.model, self.pool = load_moe_model(checkpoint, dtype=dtype), ExpertPool(1 << 40)
        for expert in self.model.experts:
            if expert != ExpertId(LAYER, LACKING):
                self.pool.add(expert, load_expert(checkpoint, expert, dtype))
        sizes = [layer.n_experts for layer in self.model.layers]
        plan = self.model.lean.plan
        self.hidden = int(plan.embedding.shape[1])
        self.calls = LittleCalls(plan, ResidentTable(self.pool, sizes, dtype))

    def rows(self, count, seed=0):
        return torch.randn(count, self.hidden, generator=torch.Generator().manual_seed(seed)).to(self.model.dtype)

    def served(self, experts, rows):
        return self.calls.serve(LAYER, self.call(experts, rows))

    def call(self, experts, rows):
        return LittleCall(experts, len(rows), bytes(pack_tensor(rows).data))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint.open(make_tiny_checkpoint("qwen3_moe", tmp_path_factory.mktemp("tiny"), dtype=torch.float32))


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16, torch.float16])
def case(request, checkpoint):
    return Case(checkpoint, request.param)


@pytest.mark.parametrize("experts", [[(0, [])], [(0, []), (2, [])], [(2, [1]), (0, [2, 0])], [(1, [0, 1, 2])]])
def test_what_is_served_has_the_bits_of_the_general_way(case, experts):
    x = case.rows(3)
    expected = [
        compute(case.model.layers[LAYER].module, case.pool.get(ExpertId(LAYER, index)), x[numbers or [0, 1, 2]])
        for index, numbers in experts
    ]
    assert case.served(experts, x) == bytes(pack_tensor(torch.cat(expected)).data)


def test_so_have_as_many_rows_as_a_call_may_have(case):
    x = case.rows(40)
    experts = [(0, list(range(40))), (2, list(range(7, 31)))]
    expected = [
        compute(case.model.layers[LAYER].module, case.pool.get(ExpertId(LAYER, index)), x[numbers])
        for index, numbers in experts
    ]
    assert case.served(experts, x) == bytes(pack_tensor(torch.cat(expected)).data)


@pytest.mark.parametrize("expert_bytes", [1 << 10, 1 << 20, 2 << 20, 3 << 20, 8 << 20, 9 << 20])
def test_a_call_of_more_rows_takes_no_longer_than_one_with_the_largest_experts(expert_bytes):
    rows = LittleCalls.rows_max(TOGETHER_BYTES_MAX // expert_bytes)
    assert TOGETHER_ROWS_MAX <= rows <= ROWS_MAX
    if expert_bytes <= TOGETHER_BYTES_MAX:
        assert rows * expert_bytes <= TOGETHER_ROWS_MAX * TOGETHER_BYTES_MAX


@pytest.mark.parametrize(
    "experts", [[], [(LACKING, [])], [(0, []), (LACKING, [])], [(-1, [])], [(99, [])], [(0, [3])], [(0, [-1])]]
)
def test_what_is_not_valid_or_not_resident_is_left_to_others(case, experts):
    assert case.served(experts, case.rows(3)) is None


def test_so_are_calls_that_are_not_little_and_data_of_another_size(case):
    assert case.served([(0, [])], case.rows(ROWS_MAX)) is not None
    assert case.served([(0, [])], case.rows(ROWS_MAX + 1)) is None
    assert case.served([(0, []), (1, [0])], case.rows(ROWS_MAX)) is None
    data = bytes(pack_tensor(case.rows(2)).data)
    assert case.calls.serve(LAYER, LittleCall([(0, [])], 2, data[:-2])) is None
    assert case.calls.serve(99, LittleCall([(0, [])], 2, data)) is None


def counting(monkeypatch):
    """Has every entry into compiled code noted, with how many experts it was asked for."""
    entries = []

    def counted(tag, desk, experts, asked, *rest):
        entries.append(len(asked))
        return serve_rows(tag, desk, experts, asked, *rest)

    monkeypatch.setattr("meshmoe.engine.lean.little.serve_rows", counted)
    return entries


def test_calls_served_together_have_the_bits_that_each_has_alone(case, monkeypatch):
    calls = [
        case.call([(0, []), (2, [1])], case.rows(3, seed=1)),
        case.call([(2, [])], case.rows(1, seed=2)),
        case.call([(2, [3, 0]), (1, []), (2, [1])], case.rows(4, seed=3)),
    ]
    alone = [case.calls.serve(LAYER, call) for call in calls]
    entries = counting(monkeypatch)
    assert case.calls.serve_together(LAYER, calls) == alone
    assert case.calls.serve_together(LAYER, calls[::-1]) == alone[::-1]
    assert len(entries) == 2
    assert None not in alone


def test_what_is_too_much_together_is_served_one_after_the_other(case, monkeypatch):
    calls = [case.call([(0, [])], case.rows(ROWS_MAX // 2, seed)) for seed in range(3)]
    entries = counting(monkeypatch)
    assert case.calls.serve_together(LAYER, calls[:2]) == [case.calls.serve(LAYER, call) for call in calls[:2]]
    assert len(entries) == 3
    assert case.calls.serve_together(LAYER, calls) == [case.calls.serve(LAYER, call) for call in calls]
    assert len(entries) == 9


def test_a_call_that_cannot_be_served_does_not_keep_others_from_it(case):
    good = case.call([(0, []), (2, [])], case.rows(2))
    alone = case.calls.serve(LAYER, good)
    for experts in ([(LACKING, [])], [(99, [])], [(0, [2])], []):
        bad = case.call(experts, case.rows(2, seed=1))
        assert case.calls.serve_together(LAYER, [bad, good, bad]) == [None, alone, None]
    assert case.calls.serve_together(99, [good, good]) == [None, None]


NUMBERS = st.one_of(st.integers(-2, 80), st.integers(-(1 << 70), 1 << 70))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    layer=st.one_of(st.just(LAYER), NUMBERS),
    experts=st.lists(st.tuples(NUMBERS, st.lists(NUMBERS, max_size=20)), max_size=20),
    count=st.one_of(st.integers(0, 80), NUMBERS),
    size=st.one_of(st.none(), st.integers(0, 200)),
)
def test_whatever_a_peer_asks_for_is_served_in_full_or_not_at_all(case, layer, experts, count, size):
    """Addresses are made of these numbers: none may lead outside."""
    right = max(0, min(count, 80)) * case.hidden * case.model.dtype.itemsize
    data = bytes(right if size is None else size)
    rows = sum(len(numbers) or count for _, numbers in experts)
    there = set(range(case.model.layers[LAYER].n_experts)) - {LACKING}
    valid = (
        0 < count <= ROWS_MAX
        and len(data) == count * case.hidden * case.model.dtype.itemsize
        and 0 < rows <= ROWS_MAX
        and all(0 <= number < count for _, numbers in experts for number in numbers)
    )
    answer = case.calls.serve(layer, LittleCall(experts, count, data))
    if layer == LAYER and all(index in there for index, _ in experts):
        assert (answer is not None) == valid
    if answer is not None:
        assert valid
        assert len(answer) == rows * case.hidden * case.model.dtype.itemsize


def test_an_evicted_expert_is_served_no_more_and_comes_back(case):
    expert, x = ExpertId(LAYER, 2), case.rows(1)
    before, weights = case.served([(2, [])], x), case.pool.get(expert)
    case.pool.evict(expert)
    assert case.served([(2, [])], x) is None
    case.pool.add(expert, weights)
    assert case.served([(2, [])], x) == before


def test_rows_are_taken_to_their_places(case):
    x, places = case.rows(2), np.zeros((4, case.hidden), np.float32)
    to = [places.ctypes.data + 4 * case.hidden * row for row in (3, 1)]
    assert case.calls.take(pack_tensor(x).data, to)
    assert np.array_equal(places[[3, 1]], x.float().numpy())
    assert not places[[0, 2]].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_not_taken(case, bad):
    x, places = case.rows(2), np.zeros((2, case.hidden), np.float32)
    to = [places.ctypes.data, places.ctypes.data + 4 * case.hidden]
    assert all_finite(x)
    x[1, -1] = bad
    assert not case.calls.take(pack_tensor(x).data, to)
    assert not all_finite(x)


def test_large_finite_numbers_are_finite_though_their_sum_is_not():
    assert all_finite(torch.full((4, 64), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16))


def test_neither_more_rows_than_there_are_places_nor_fewer(case):
    places = np.zeros((2, case.hidden), np.float32)
    assert not case.calls.take(pack_tensor(case.rows(2)).data, [places.ctypes.data])
    assert not case.calls.take(pack_tensor(case.rows(1)).data, [places.ctypes.data] * 2)
    assert not places.any()
