"""The whole engine on a card: tokens are the host's, whatever is away, batched, drafted or shared. Needs a card."""

from __future__ import annotations

import random

import pytest
import torch
import trio

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device on this machine", allow_module_level=True)

from meshmoe.core.ids import ExpertId
from meshmoe.engine.cuda.experts import compute_there, compute_together_there
from meshmoe.engine.dispatch import compute_rows
from meshmoe.engine.drafts.mode import parse_draft_mode
from meshmoe.engine.engine import EngineLimits, open_engine
from meshmoe.engine.model import load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.loading import load_expert
from tests.engine.support import EDGE_12M, Scattered, complete, edge, edge_pool


class NoJob:
    def checkpoint(self):
        pass


CARD = torch.device("cuda")
PROMPTS = ["The history of the", "def read(self):\n", "7 + 8 = 15\n9 + 8 =", "lantern, noun: a lamp with", "int main("]


def card(dtype, share):
    """The bundled model on the card, with a pool of a share of its experts."""
    checkpoint = Checkpoint.open(EDGE_12M)
    model, rng = load_moe_model(checkpoint, dtype, device=CARD), random.Random(4)
    pool = ExpertPool(1 << 32, CARD)
    for expert in model.experts:
        if rng.random() < share:
            pool.add(expert, load_expert(checkpoint, expert, dtype))
    return model, pool


def test_experts_take_no_more_of_the_card_than_they_are_given():
    size = 6 << 20
    pool = ExpertPool(40 * 3 * size // 2, CARD)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for index in range(40):
        weights = {"gate_up_proj": torch.empty(size // 2).bfloat16(), "down_proj": torch.empty(size // 4).bfloat16()}
        pool.add(ExpertId(0, index), weights)
    assert pool.free_bytes == 0
    assert torch.cuda.memory_reserved() - before < 1.05 * pool.capacity_bytes


async def texts(engine):
    found = {}

    async def ask(at):
        options = {"temperature": 0.8, "seed": at} if at % 2 else {}
        result = await complete(engine, PROMPTS[at], max_tokens=40, ignore_eos=True, **options)
        found[at] = result.ids, result.logprobs

    async with trio.open_nursery() as nursery:
        for at in range(len(PROMPTS)):
            nursery.start_soon(ask, at)
    return found


def test_tokens_are_the_hosts():
    async def main():
        async with open_engine(edge(torch.float32)[1], edge_pool(torch.float32)) as engine:
            host = await texts(engine)
        model, pool = card(torch.float32, 1.0)
        async with open_engine(model, pool) as engine:
            assert {at: ids for at, (ids, _) in (await texts(engine)).items()} == {at: i for at, (i, _) in host.items()}

    trio.run(main)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_placement_nor_drafts_change_a_token(dtype):
    async def main():
        whole_model, whole = card(dtype, 1.0)
        async with open_engine(whole_model, whole) as peer:
            alone = await texts(peer)
            for share, mode in ((0.5, "off"), (0.5, "4"), (0.5, "auto"), (0.9, "auto")):
                model, pool = card(dtype, share)
                limits = EngineLimits(drafts=parse_draft_mode(mode))
                async with open_engine(model, pool, Scattered([peer], 0.0005), limits) as engine:
                    assert await texts(engine) == alone, (share, mode)

    trio.run(main)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_peers_call_has_the_bits_of_single_experts(dtype):
    """However many experts a row names, also twice, and where the call is computed one expert after the other."""
    model, pool = card(dtype, 1.0)
    rng, experts = random.Random(3), model.layers[0]
    hidden = torch.randn(40, model.config.hidden_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    for count in (1, 3, 8, 12):
        held = [pool.get(ExpertId(0, index)) for index in rng.sample(range(experts.n_experts), count)]
        rows = [sorted([0, *rng.choices(range(40), k=rng.randrange(1, 50))]) for _ in held]
        alone = torch.cat([compute_there(w, hidden[numbers]) for w, numbers in zip(held, rows, strict=True)])
        together = compute_together_there(held, rows, hidden)
        assert (together is None) == (count == 12)
        assert together is None or torch.equal(together, alone)
        assert torch.equal(compute_rows(NoJob(), experts, held, rows, hidden), alone)
