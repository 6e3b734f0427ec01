"""A mesh writes the tokens of one node, and that one those of stock transformers, wherever the experts stand."""

import random

import pytest
import torch
import trio
from transformers import AutoModelForCausalLM

from meshmoe.model.tiny import make_tiny_checkpoint
from tests.node.support import GREEDY, SEEDED, open_test_mesh, random_shares, written, written_alone

PROMPTS = [(5, 17, 40, 8), tuple(range(3, 100, 2)), (64,)]
FAMILIES = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"),
    *("gpt_oss", "phimoe", "granitemoe", "glm4_moe", "ernie4_5_moe", "minimax"),
)


def stock_greedy(directory, prompt):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=GREEDY.max_tokens, do_sample=False, eos_token_id=None
        )
    return out[0, len(prompt) :].tolist()


async def mesh_texts(tmp_path, directory, count, seed):
    """Every prompt, greedy and seeded, on every node at once."""
    rng = random.Random(seed)
    async with open_test_mesh(tmp_path) as mesh:
        for share in random_shares(count, seed):
            await mesh.add(f"n{rng.randrange(10**6)}", directory, share)
        await mesh.settle()
        texts = {}

        async def ask(node, i, prompt, sampling):
            texts[node.settings.node, i] = await written(node, prompt, sampling)

        async with trio.open_nursery() as nursery:
            for node in mesh.nodes:
                requests = [(prompt, sampling) for prompt in PROMPTS for sampling in (GREEDY, SEEDED)]
                for i, (prompt, sampling) in enumerate(requests):
                    nursery.start_soon(ask, node, i, prompt, sampling)
        rounds = sum(node.serving._recent[-1].decode_rounds for node in mesh.nodes)
        return texts, rounds


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_nodes_writes_what_one_writes(tmp_path, count):
    directory = make_tiny_checkpoint("qwen3_moe", tmp_path / "model")
    seed = 100 + count
    texts, rounds = trio.run(mesh_texts, tmp_path, directory, count, seed)
    alone = trio.run(written_alone, directory, PROMPTS, (GREEDY, SEEDED))
    for (node, i), text in texts.items():
        assert text == alone[i], f"request {i} on {node} differs (seed {seed})"
    assert (rounds > 0) == (count > 1)
    assert [token for token, _ in alone[0]] == stock_greedy(directory, PROMPTS[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_a_mesh_writes_what_transformers_writes(tmp_path, family):
    directory = make_tiny_checkpoint(family, tmp_path / "model")

    async def two_nodes():
        async with open_test_mesh(tmp_path) as mesh:
            await mesh.add("left", directory, 0.7)
            await mesh.add("right", directory, 0.5)
            await mesh.settle()
            return [await written(node, PROMPTS[0], GREEDY) for node in mesh.nodes]

    expected = stock_greedy(directory, PROMPTS[0])
    for text in trio.run(two_nodes):
        assert [token for token, _ in text] == expected
