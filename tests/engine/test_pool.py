"""The pool never exceeds its budget, and says what changes."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.core.errors import CapacityError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.pool import ExpertPool, NotResidentError, PoolChange

A, B = ExpertId(0, 1), ExpertId(2, 3)


def weights(size_bytes):
    return {"down_proj": torch.zeros(size_bytes // 4)}


def test_a_life():
    pool, changes = ExpertPool(100), []
    end = pool.subscribe(changes.append)
    reservation = pool.reserve(A, 60)
    assert (pool.used_bytes, pool.reserved_bytes, pool.free_bytes) == (0, 60, 40)
    assert A not in pool
    with pytest.raises(CapacityError, match="no room for expert 2/3 of 60 B: 40"):
        pool.reserve(B, 60)
    with pytest.raises(CapacityError, match="already"):
        pool.reserve(A, 10)
    reservation.commit(weights(60))
    reservation.release()
    assert (pool.used_bytes, pool.reserved_bytes, pool.free_bytes) == (60, 0, 40)
    assert pool.experts() == {A: 60}
    with pytest.raises(ValueError, match="no longer open"):
        reservation.commit(weights(60))
    with pool.reserve(B, 40):
        assert pool.free_bytes == 0
    assert pool.free_bytes == 40
    assert pool.evict(A)
    assert not pool.evict(A)
    assert changes == [PoolChange(A, True, 60), PoolChange(A, False, 60)]
    end()
    pool.add(A, weights(100))
    assert len(changes) == 2


def test_weights_larger_than_the_reservation_are_refused():
    pool = ExpertPool(100)
    with pool.reserve(A, 40) as reservation, pytest.raises(CapacityError, match="reserve"):
        reservation.commit(weights(44))
    assert pool.free_bytes == 100
    assert A not in pool


def test_all_or_none_are_taken():
    pool = ExpertPool(100)
    pool.add(A, weights(8))
    assert len(pool.take([A, A])) == 2
    with pytest.raises(NotResidentError) as caught:
        pool.take([B, A, ExpertId(0, 0)])
    assert caught.value.experts == (ExpertId(0, 0), B)


def test_weights_are_aligned():
    pool = ExpertPool(10_000)
    odd = torch.zeros(100)[1:81].view(8, 10)
    pool.add(A, {"a": odd, "b": torch.zeros(8, 10).t()})
    for tensor in pool.get(A).values():
        assert tensor.data_ptr() % 64 == 0
        assert tensor.is_contiguous()


@given(
    st.lists(
        st.tuples(st.sampled_from(["reserve", "commit", "release", "evict"]), st.integers(0, 4), st.integers(1, 60))
    )
)
@settings(max_examples=200, deadline=None)
def test_the_budget_holds(steps):
    pool, open_reservations = ExpertPool(100), {}
    for what, index, size in steps:
        expert = ExpertId(0, index)
        try:
            if what == "reserve":
                open_reservations[expert] = pool.reserve(expert, size * 4)
            elif what == "evict":
                pool.evict(expert)
            elif expert in open_reservations:
                if what == "commit":
                    open_reservations[expert].commit(weights(open_reservations[expert].size_bytes))
                else:
                    open_reservations[expert].release()
        except (CapacityError, ValueError):
            pass
        assert pool.used_bytes + pool.reserved_bytes + pool.free_bytes == 100
        assert pool.free_bytes >= 0
        assert pool.used_bytes == sum(pool.experts().values())


def test_threads_do_not_break_it():
    pool, over = ExpertPool(400), []

    def work(seed):
        for turn in range(200):
            expert = ExpertId(seed, turn % 3)
            with contextlib.suppress(CapacityError):
                pool.add(expert, weights(40))
            if pool.used_bytes > 400:
                over.append(pool.used_bytes)
            pool.evict(expert)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not over
    assert pool.used_bytes == 0
    assert pool.reserved_bytes == 0
