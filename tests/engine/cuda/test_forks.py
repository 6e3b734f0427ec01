"""Trees of drafts on a card: a row of a fork has the bits of a chain that never knew of it. Needs a card."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device on this machine", allow_module_level=True)

from meshmoe.engine.counts import ActivationCounts
from meshmoe.engine.cuda.engine import CudaEngine
from meshmoe.engine.lean.row import Row
from meshmoe.engine.request import GenerationStats
from tests.engine.cuda.test_engine import card
from tests.engine.support import grown, path_to

IDS = [random.Random(9).randrange(3, 288) for _ in range(200)]


class NoJob:
    def checkpoint(self):
        pass


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def engine(request):
    model, pool = card(request.param, 1.0)
    sizes = [layer.n_experts for layer in model.layers]
    return CudaEngine(model.lean, model.card, pool, sizes, None, ActivationCounts.zeros(sizes), 1 << 27)


@pytest.mark.parametrize("seed", range(8))
def test_rows_of_a_tree_are_those_of_chains(engine, seed):
    rng = random.Random(seed)
    before = rng.choice([1, 30, 31, 32, 33, 63, 70])
    parents = [rng.randrange(-1, at) for at in range(rng.randrange(2, 14))]
    tokens = [rng.randrange(3, 288) for _ in parents]
    batch, stats = engine.batch(NoJob()), GenerationStats()

    def read(sequence, ids):
        return batch.forward([Row(sequence, token, stats) for token in ids])

    trunk = engine.sequence()
    read(trunk, IDS[:before])
    rows, forks = grown(trunk, parents, tokens, stats)
    logits = batch.forward(rows)
    for at in range(len(parents)):
        chain = engine.sequence()
        read(chain, IDS[:before])
        assert torch.equal(logits[at], read(chain, [tokens[n] for n in path_to(parents, at)])[-1]), (at, parents)
        chain.close()
    taken = rng.randrange(len(parents))
    trunk.become(rows[taken].sequence)
    trunk.truncate(before + len(path_to(parents, taken)))
    for fork in forks:
        fork.close()
    again = engine.sequence()
    read(again, [*IDS[:before], *(tokens[n] for n in path_to(parents, taken))])
    assert torch.equal(read(trunk, IDS[100:140]), read(again, IDS[100:140]))
    trunk.close()
    again.close()
