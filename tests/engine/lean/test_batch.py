"""The ragged step: a row's bits are its own, whatever is in the batch; rollback, drafts, and what a failure leaves."""

from __future__ import annotations

import os
import random
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshmoe.core.errors import ExpertUnavailableError
from meshmoe.core.ids import ExpertId
from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.kernels.limit import SLICE_S, SliceLimit
from meshmoe.engine.kernels.stopping import due
from meshmoe.engine.lean.batch import LeanEngine
from meshmoe.engine.lean.blocks import NoBlocksError
from meshmoe.engine.lean.model import ROWS_MAX
from meshmoe.engine.lean.plan import FAMILIES
from meshmoe.engine.lean.row import Row
from meshmoe.engine.model import load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.request import GenerationStats
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.tiny import make_tiny_checkpoint
from tests.engine.support import grown, path_to, pool_of, subset

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IDS = [random.Random(9).randrange(3, 288) for _ in range(400)]


class NoJob:
    limit = SliceLimit()

    def checkpoint(self):
        pass


class Bench:
    """A lean engine without threads around it."""

    def __init__(self, model, pool, kv_bytes=64 << 20):
        sizes = [layer.n_experts for layer in model.layers]
        self.counts = ActivationCounts.zeros(sizes)
        self.engine = LeanEngine(model.lean, pool, sizes, None, self.counts, kv_bytes)
        self.batch = self.engine.batch(NoJob())
        self.stats = GenerationStats()

    def rows(self, sequence, ids, **kind):
        return [Row(sequence, token, self.stats, **kind) for token in ids]

    def read(self, sequence, ids, **kind):
        return self.batch.forward(self.rows(sequence, ids, **kind))


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return Checkpoint.open(make_tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param), seed=5))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    checkpoint = Checkpoint.open(make_tiny_checkpoint("qwen3_moe", tmp_path_factory.mktemp("qwen"), seed=5))
    model = load_moe_model(checkpoint, torch.bfloat16)
    return model, pool_of(checkpoint, model, model.experts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_what_else_is_in_the_batch(checkpoint, dtype):
    model = load_moe_model(checkpoint, dtype, decode="lean")
    bench = Bench(model, pool_of(checkpoint, model, model.experts))
    one_by_one = bench.engine.sequence()
    alone = torch.cat([bench.read(one_by_one, [token]) for token in IDS[:80]])
    rng = random.Random(3)
    sequences = [(bench.engine.sequence(), begin) for begin in (0, 0, 0, 7, 20)]
    found = {id(sequence): [] for sequence, _ in sequences}
    while any(sequence.length < 80 for sequence, begin in sequences if begin == 0):
        rows, owners = [], []
        for sequence, begin in sequences:
            count = min(rng.choice((0, 1, 1, 3, 5, 40)), 80 - sequence.length)
            rows += bench.rows(sequence, IDS[begin + sequence.length :][:count])
            owners += [sequence] * count
        if rows:
            for owner, logits in zip(owners, bench.batch.forward(rows), strict=True):
                found[id(owner)].append(logits)
    for sequence, begin in sequences:
        if begin == 0:
            assert torch.equal(torch.stack(found[id(sequence)]), alone)


def test_only_the_logits_that_are_wanted(qwen):
    bench = Bench(*qwen)
    whole = bench.read(bench.engine.sequence(), IDS[:40])
    sequence = bench.engine.sequence()
    rows = [row._replace(logits=at in (3, 39)) for at, row in enumerate(bench.rows(sequence, IDS[:40]))]
    assert torch.equal(bench.batch.forward(rows), whole[[3, 39]])
    assert bench.read(sequence, IDS[40:42], logits=False).shape[0] == 0


def test_the_highest_logit_is_found_first_of_equal_ones_and_not_where_one_is_no_number(qwen):
    model, pool = qwen
    bench = Bench(model, pool)
    sequence = bench.engine.sequence()
    rows = [Row(sequence, token, bench.stats, logits=at % 3 > 0) for at, token in enumerate(IDS[:40])]
    logits = bench.batch.forward(rows)
    assert bench.batch.best == logits.numpy().argmax(axis=1).tolist()
    head, bits = model.lean.plan.head, model.lean.plan.head.clone()
    try:
        with torch.no_grad():
            head.copy_(bits[:1].expand_as(bits))
            bench.read(sequence, IDS[40:41])
            assert bench.batch.best == [0]
            head[7] = float("nan")
            bench.read(sequence, IDS[41:43])
            assert bench.batch.best == [-1, -1]
    finally:
        with torch.no_grad():
            head.copy_(bits)


def test_a_sequence_that_is_truncated_goes_on_as_if_nothing_had_been(qwen):
    bench = Bench(*qwen)
    sequence = bench.engine.sequence()
    whole = bench.read(sequence, IDS[:100])
    used = bench.engine.blocks.used_bytes
    for length in (99, 64, 33, 1):
        sequence.truncate(length)
        bench.read(sequence, IDS[200:230])
        sequence.truncate(length)
        assert torch.equal(bench.read(sequence, IDS[length:100]), whole[length:])
        assert bench.engine.blocks.used_bytes == used
    sequence.close()
    assert bench.engine.blocks.used_bytes == 0


def test_a_shared_beginning_is_not_read_again_and_changes_no_bit(qwen):
    bench = Bench(*qwen)
    first = bench.engine.sequence()
    whole = bench.read(first, IDS[:150])
    first.publish(IDS[:150])
    assert bench.engine.sequence(long=True).share(IDS[:150]) == 0
    for ids, shared in ((IDS[:150], 128), (IDS[:128], 96), (IDS[:70] + [5] * 30, 64), ([5, *IDS], 0)):
        second = bench.engine.sequence()
        assert second.share(ids) == shared
        if ids == IDS[:150]:
            assert torch.equal(bench.read(second, ids[shared:]), whole[shared:])
        # Into the shared part and over it: the first one's must stay as they were.
        second.truncate(shared // 2)
        bench.read(second, [7] * 90)
        second.close()
    first.truncate(149)
    assert torch.equal(bench.read(first, IDS[149:150])[0], whole[149])
    first.close()
    third = bench.engine.sequence()
    assert third.share(IDS[:150]) == 128
    assert torch.equal(bench.read(third, IDS[128:150]), whole[128:])


def test_a_draft_makes_do_with_the_resident_experts(checkpoint):
    model = load_moe_model(checkpoint, torch.float32, decode="lean")
    whole = pool_of(checkpoint, model, model.experts)
    for share, seed in ((0.5, 1), (0.2, 2), (0.0, 3)):
        rng = random.Random(seed)
        bench = Bench(model, subset(whole, [e for e in model.experts if rng.random() < share]))
        sequence = bench.engine.sequence()
        with pytest.raises(ExpertUnavailableError, match="no peers to ask"):
            bench.read(sequence, IDS[:4])
        assert sequence.length == 0
        drafted = bench.read(sequence, IDS[:4], local=True)
        assert sequence.length == 4
        assert drafted.isfinite().all()
        again = bench.engine.sequence()
        assert torch.equal(torch.cat([bench.read(again, [token], local=True) for token in IDS[:4]]), drafted)
    complete = Bench(model, whole)
    one, other = complete.engine.sequence(), complete.engine.sequence()
    assert torch.equal(complete.read(one, IDS[:9], local=True), complete.read(other, IDS[:9]))
    assert sum(layer.sum() for layer in complete.counts.decode) == 9 * complete.engine.model.expert_calls


def test_drafts_choose_the_best_of_what_is_there(qwen):
    """A restricted router gives the weights that the model would if the others did not exist."""
    model, whole = qwen
    resident = [ExpertId(layer.layer, e) for layer in model.layers for e in range(0, layer.n_experts, 3)]
    bench = Bench(model, subset(whole, resident))
    bench.read(bench.engine.sequence(), IDS[:20], local=True)
    chosen = bench.batch._work.chosen
    assert set(chosen.reshape(-1).tolist()) <= {e.index for e in resident}
    assert (chosen >= 0).all(), "there are enough of them"


def test_no_room_is_said_before_anything_is_computed(qwen):
    model, pool = qwen
    bench = Bench(model, pool, kv_bytes=4 * 32 * model.lean.token_bytes)
    assert bench.engine.blocks.capacity == 4
    first, second = bench.engine.sequence(), bench.engine.sequence()
    bench.read(first, IDS[:70])
    with pytest.raises(NoBlocksError):
        bench.read(second, IDS[:33])
    assert second.length == 0
    bench.read(second, IDS[:32])
    first.publish(IDS[:70])
    first.close()
    second.close()
    assert bench.engine.blocks.available == 4
    bench.read(second, IDS[:128])
    assert bench.engine.blocks.available == 0
    assert bench.engine.sequence().share(IDS[:70]) == 0, "kept blocks are taken when no others are left"


def test_a_batch_as_large_as_may_be(qwen):
    bench = Bench(*qwen)
    one, other = bench.engine.sequence(), bench.engine.sequence()
    whole = bench.read(one, IDS[:ROWS_MAX])
    parts = torch.cat([bench.read(other, IDS[begin : begin + 64]) for begin in range(0, ROWS_MAX, 64)])
    assert torch.equal(whole, parts)


def test_activations_are_counted_by_kind_and_only_once(qwen):
    bench = Bench(*qwen)
    sequence = bench.engine.sequence()
    bench.read(sequence, IDS[:10], decode=False)
    bench.read(sequence, IDS[10:13])
    calls = bench.engine.model.expert_calls
    assert sum(layer.sum() for layer in bench.counts.prefill) == 10 * calls
    assert sum(layer.sum() for layer in bench.counts.decode) == 3 * calls
    assert bench.stats.expert_calls_local == 13 * calls


def test_a_step_that_is_cut_everywhere_has_the_same_bits_and_one_that_nobody_cuts_looks_once(qwen):
    bench = Bench(*qwen)
    whole, alone = bench.engine.sequence(), bench.read(bench.engine.sequence(), IDS[:60])
    looks = []

    class Job:
        limit = SliceLimit()

        def checkpoint(self):
            looks.append(1)
            self.limit.cut() if cutting else self.limit.mend()

    bench.batch, cutting = bench.engine.batch(Job()), False
    assert torch.equal(bench.read(whole, IDS[:60]), alone)
    assert len(looks) == 1
    cutting = True
    for count in (59, 1):  # of one row experts are computed where they lie, of more they are sorted
        sequence = bench.engine.sequence()
        bench.read(sequence, IDS[: 60 - count])
        looks.clear()
        read = bench.read(sequence, IDS[60 - count : 60])
        assert torch.equal(read, alone[60 - count :])
        assert len(looks) >= 3 * len(bench.engine.model.plan.layers)


def test_a_batch_that_is_abandoned_cuts_the_slice_under_way(qwen):
    class Job(NoJob):
        limit = SliceLimit()

        def interrupt(self):
            self.limit.cut()

    batch = Bench(*qwen).engine.batch(Job())
    batch.abandon()
    assert due(Job.limit.address)


def test_a_bounded_slice_ends_by_itself():
    limit = SliceLimit()
    assert not due(0) and not due(limit.address)
    limit.begin(bounded=True)
    assert not due(limit.address)
    time.sleep(2 * SLICE_S)
    assert due(limit.address)
    limit.begin()
    assert not due(limit.address)
    limit.cut()
    assert due(limit.address)


def test_a_bounded_slice_goes_on_while_nothing_can_be_read():
    limit, (reading, writing) = SliceLimit(), os.pipe()
    limit.bounded = True
    limit.watch(reading)
    limit.begin()
    for _ in range(3):
        time.sleep(1.5 * SLICE_S)
        assert not due(limit.address)
    limit.hurry()
    time.sleep(1.5 * SLICE_S)
    assert due(limit.address)
    limit.begin()
    os.write(writing, b"x")
    time.sleep(1.5 * SLICE_S)
    assert due(limit.address)
    os.close(reading)
    os.close(writing)


def test_an_empty_pool_is_a_draft_of_the_trunk_alone(qwen):
    bench = Bench(qwen[0], ExpertPool(1 << 20))
    assert bench.read(bench.engine.sequence(), IDS[:3], local=True).isfinite().all()


@st.composite
def trees(draw):
    """Parents of a tree's rows, -1 for the first's; and how much had been read before."""
    count = draw(st.integers(1, 12))
    return [draw(st.integers(-1, at - 1)) if at else -1 for at in range(count)], draw(st.integers(1, 70))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees(), st.integers(0, 2**32))
def test_a_row_of_a_tree_has_the_bits_that_it_has_in_a_chain(qwen, tree, seed):
    """And so has what is read behind it, when its branch is gone on with."""
    parents, before = tree
    bench, rng = Bench(*qwen), random.Random(seed)
    tokens = [rng.randrange(3, 288) for _ in parents]
    trunk = bench.engine.sequence()
    bench.read(trunk, IDS[:before])
    trunk.publish(IDS[:before])
    rows, forks = grown(trunk, parents, tokens, bench.stats)
    logits = bench.batch.forward(rows)
    for at in range(len(parents)):
        chain = bench.engine.sequence()
        bench.read(chain, IDS[:before])
        alone = bench.read(chain, [tokens[n] for n in path_to(parents, at)])
        assert torch.equal(logits[at], alone[-1])
        chain.close()
    taken = rng.randrange(len(parents))
    trunk.become(rows[taken].sequence)
    trunk.truncate(before + len(path_to(parents, taken)))
    for fork in forks:
        fork.close()
    again = bench.engine.sequence()
    bench.read(again, [*IDS[:before], *(tokens[n] for n in path_to(parents, taken))])
    assert torch.equal(bench.read(trunk, IDS[300:340]), bench.read(again, IDS[300:340]))
    trunk.close()
    again.close()
    assert bench.engine.blocks.used_bytes == 0


def test_forks_do_not_write_to_each_others_blocks(qwen):
    """A full block that two of them use, and that one then goes back into, is copied first."""
    bench = Bench(*qwen)
    whole = bench.read(bench.engine.sequence(), IDS[:100])
    sequence = bench.engine.sequence()
    bench.read(sequence, IDS[:70])
    fork = sequence.fork()
    sequence.truncate(40)
    bench.read(sequence, IDS[200:260])
    assert torch.equal(bench.read(fork, IDS[70:100]), whole[70:])
    full = Bench(*qwen, kv_bytes=3 * bench.engine.blocks.block_bytes)
    sequence = full.engine.sequence()
    full.read(sequence, IDS[:70])
    with pytest.raises(NoBlocksError):
        sequence.fork()
    assert full.engine.blocks.used_bytes == 3 * full.engine.blocks.block_bytes
    full.read(sequence, IDS[70:96])
    fork = sequence.fork()  # nothing to copy
    fork.close()
    sequence.close()
    assert full.engine.blocks.used_bytes == 0
