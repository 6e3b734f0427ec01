"""Snapshots of the pool: whoever computes with one keeps its weights, and nobody else does."""

import gc
import weakref

import pytest
import torch

from meshmoe.core.ids import ExpertId
from meshmoe.engine.lean.resident import ResidentTable
from meshmoe.engine.pool import ExpertPool

FIRST, SECOND = ExpertId(0, 1), ExpertId(1, 0)


def weights(dtype=torch.float32):
    return {"gate_up_proj": torch.ones(4, 8, dtype=dtype), "down_proj": torch.ones(8, 2, dtype=dtype)}


def test_addresses_are_those_of_the_pool():
    pool = ExpertPool(1 << 20)
    table = ResidentTable(pool, [2, 3], torch.float32)
    assert not table.snapshot().addresses.any()
    pool.add(SECOND, weights())
    addresses = table.snapshot().addresses
    assert addresses.shape == (2, 3, 2)
    held = pool.get(SECOND)
    assert addresses[1, 0].tolist() == [held["gate_up_proj"].data_ptr(), held["down_proj"].data_ptr()]
    assert (addresses != 0).sum() == 2
    assert table.snapshot() is table.snapshot()
    pool.evict(SECOND)
    assert not table.snapshot().addresses.any()


def test_an_evicted_expert_lives_as_long_as_a_snapshot_that_has_it():
    pool = ExpertPool(1 << 20)
    table = ResidentTable(pool, [2, 3], torch.float32)
    pool.add(FIRST, weights())
    snapshot, memory = table.snapshot(), weakref.ref(pool.get(FIRST)["down_proj"])
    pool.evict(FIRST)
    gc.collect()
    assert memory() is not None
    assert snapshot.addresses[0, 1, 1] == memory().data_ptr()
    del snapshot
    gc.collect()
    assert memory() is None, "the table itself keeps nothing that was evicted"


def test_a_change_while_a_snapshot_is_made_is_not_lost():
    pool = ExpertPool(1 << 20)
    pool.add(FIRST, weights())
    table = ResidentTable(pool, [2, 3], torch.float32)
    look = pool.weights

    def look_and_be_overtaken():
        found = look()
        pool.add(SECOND, weights())
        return found

    pool.weights = look_and_be_overtaken
    assert not table.snapshot().addresses[1, 0].any()
    pool.weights = look
    assert table.snapshot().addresses[1, 0].all()


def test_weights_in_another_dtype_are_refused():
    pool = ExpertPool(1 << 20)
    pool.add(FIRST, weights(torch.bfloat16))
    with pytest.raises(ValueError, match=r"0/1 is in torch\.bfloat16"):
        ResidentTable(pool, [2, 3], torch.float32).snapshot()


def test_a_table_that_is_gone_listens_no_more():
    pool = ExpertPool(1 << 20)
    table = ResidentTable(pool, [2, 3], torch.float32)
    assert len(pool._listeners) == 1
    del table
    gc.collect()
    assert not pool._listeners
