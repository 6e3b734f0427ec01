"""Nodes that are used move experts to where they are used, and write the same tokens before, during and after."""

import trio

from meshmoe.model.bundled import bundled_model_dir
from tests.node.support import GREEDY, SEEDED, open_test_mesh, written, written_alone

SETTLED_S_MAX = 600.0
"""The first decision of a machine compiles, which takes minutes where others compute beside it: 240 s were not enough
once. Settled it is within a minute."""

PROMPTS = [(120, 87, 400, 900, 33), tuple(range(300, 340)), (64, 65, 66)]


def test_use_moves_experts_and_no_token_changes(tmp_path):
    async def live():
        texts = []

        async def use(node, prompt):
            while True:
                texts.append((prompt, await written(node, prompt, GREEDY), await written(node, prompt, SEEDED)))

        async with open_test_mesh(tmp_path) as mesh:
            for name in ("ant", "bee", "cat"):
                await mesh.add(name, bundled_model_dir(), 0.5)
            await mesh.settle()
            before = [node.status() for node in mesh.nodes]
            with trio.fail_after(SETTLED_S_MAX):
                async with trio.open_nursery() as nursery:
                    for node, prompt in zip(mesh.nodes, PROMPTS, strict=True):
                        nursery.start_soon(use, node, prompt)
                    while not all(node.status().placement.settled for node in mesh.nodes):
                        await trio.sleep(0.2)
                    nursery.cancel_scope.cancel()
            await mesh.settle()
            with trio.fail_after(30):  # digests are told every other second
                while not all(node.status().agreement.equal for node in mesh.nodes):
                    await trio.sleep(0.2)
            await mesh.settle()
            after = [node.status() for node in mesh.nodes]
            for node, prompt in zip(mesh.nodes, PROMPTS, strict=True):
                texts.append((prompt, await written(node, prompt, GREEDY), await written(node, prompt, SEEDED)))
            return texts, before, after

    texts, before, after = trio.run(live)
    alone = trio.run(written_alone, bundled_model_dir(), PROMPTS, (GREEDY, SEEDED))
    expected = {prompt: tuple(alone[2 * i : 2 * i + 2]) for i, prompt in enumerate(PROMPTS)}
    for prompt, *both in texts:
        assert tuple(both) == expected[prompt]
    assert {status.placement.rule for status in before} == {"guardian"}
    assert {status.placement.rule for status in after} == {"exchange"}
    maps = [[status.coverage.holder_map_digest for status in some] for some in (before, after)]
    assert len(set(maps[0])) == len(set(maps[1])) == 1 and maps[0] != maps[1], "all agree, on something else"
    moves = [exchange for status in after for exchange in status.placement.exchanges]
    assert any(move.partner and move.gain_ms_per_token > 0 for move in moves)
