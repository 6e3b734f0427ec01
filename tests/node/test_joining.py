"""How nodes come and go: without files, one after the other, too small together, leaving."""

import shutil

import pytest
import trio

from meshmoe.core.errors import CapacityError
from meshmoe.model.store import PartialStore
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.model.unit_names import UnitName
from tests.node.support import GREEDY, open_test_mesh, written, written_alone
from tests.transport.support import free_port

PROMPT = (5, 17, 40, 8)


@pytest.fixture
def model(tmp_path):
    return make_tiny_checkpoint("qwen3_moe", tmp_path / "model")


def test_nodes_without_files_fetch_what_they_need(tmp_path, model):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            await mesh.add("with-files", model, 0.4)
            bare = await mesh.add("bare", None, 0.8)
            await mesh.settle()
            assert bare.model_name == "model"
            store = bare.model_source.source
            assert isinstance(store, PartialStore)
            assert set(bare.pool.experts()) <= store.stored_experts()
            assert store.stored_experts() < set(bare.model.experts), "only what it needs is fetched"
            return await written(bare, PROMPT, GREEDY)

    assert trio.run(main) == trio.run(written_alone, model, [PROMPT], [GREEDY])[0]


def test_what_was_fetched_is_not_fetched_again_and_damage_is_mended(tmp_path, model):
    async def lives():
        async with open_test_mesh(tmp_path) as mesh:
            server = await mesh.add("with-files", model, 0.4)
            for life in range(3):
                before = server.parts.unit_server.sent_bytes
                node = await mesh.add("bare", None, 0.8)
                await mesh.settle()
                sent.append(server.parts.unit_server.sent_bytes - before)
                store = node.model_source.source
                node.stop()
                mesh.nodes.remove(node)
                await trio.sleep(0.5)
                if life == 1:  # a bad disk: one expert's bytes change behind our back
                    expert = min(store.stored_experts())
                    path = store.directory / UnitName.of_expert(expert).path
                    content = bytearray(path.read_bytes())
                    content[100] ^= 1
                    path.write_bytes(content)
                    damaged.append(len(content))

    sent, damaged = [], []
    trio.run(lives)
    assert sent[0] > 0
    assert sent[1] == 0
    assert 0 < sent[2] <= damaged[0] + 1024


def test_too_little_capacity_says_how_much_is_missing_until_a_node_joins(tmp_path, model):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 0.4)
            with trio.fail_after(20):
                while not first.parts.custody.wanted or first.parts.custody.machine.intakes or not first.pool.experts():
                    await trio.sleep(0.02)
            with pytest.raises(CapacityError) as caught:
                await written(first, PROMPT, GREEDY)
            missing = first.status().coverage.missing_bytes
            total = first.status().model.expert_bytes_total
            assert total * 0.55 < missing < total * 0.65
            assert f"{missing} bytes" in str(caught.value)
            await mesh.add("second", model, 0.8)
            await mesh.settle()
            return await written(first, PROMPT, GREEDY)

    assert trio.run(main) == trio.run(written_alone, model, [PROMPT], [GREEDY])[0]


def test_a_leaving_node_hands_over_what_only_it_holds(tmp_path, model):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            stays = await mesh.add("stays", model, 1.0)
            goes = await mesh.add("goes", model, 1.0)
            third = await mesh.add("third", None, 0.5)
            await mesh.settle()
            steps = []
            async with goes.leave() as progress:
                async for step in progress:
                    steps.append(step)
            mesh.nodes.remove(goes)
            assert steps[-1].text == "left"
            with trio.fail_after(10):
                while third.status().peers[1].state != "left":
                    await trio.sleep(0.05)
            await mesh.settle(stays, third)
            return await written(third, PROMPT, GREEDY)

    assert trio.run(main) == trio.run(written_alone, model, [PROMPT], [GREEDY])[0]


def test_two_nodes_that_leave_together_do_not_wait_for_each_other(tmp_path, model):
    """They took 15 s and more to see that nobody takes anything; where nothing else runs it takes 4 s."""

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            nodes = [await mesh.add("left", model, 0.7), await mesh.add("right", model, 0.7)]
            await mesh.settle()
            mesh.nodes.clear()
            texts = {}

            async def leave(node):
                async with node.leave() as progress:
                    texts[node] = [step.text async for step in progress]

            with trio.fail_after(12):
                async with trio.open_nursery() as nursery:
                    for node in nodes:
                        nursery.start_soon(leave, node)
            for node in nodes:
                assert texts[node][-1] == "left"
                assert "experts could not be handed over" in texts[node][-2]
                assert "every other node has gone or is leaving too" in texts[node][-2]

    trio.run(main)


def test_a_mesh_of_other_files_is_not_joined(tmp_path, model):
    other = make_tiny_checkpoint("qwen3_moe", tmp_path / "other", seed=1)

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            await mesh.add("first", model, 1.0)
            await mesh.add("second", other, 1.0)

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert "this mesh serves model" in repr(caught.value)
    shutil.rmtree(other)


def test_who_lives_at_a_peer_address_later_is_met(tmp_path, model, monkeypatch):
    """The only node that knew both has gone, and another one has taken its place, knowing nobody."""
    monkeypatch.setattr("meshmoe.node.joining.GREET_AGAIN_S", 0.5)

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            port = free_port()
            # Insecure, since a node that knows nobody does not know the secret of the mesh either.
            old = await mesh.add("old", model, 1.0, listen=("127.0.0.1", port), insecure=True)
            stays = await mesh.add("stays", model, 1.0, insecure=True)
            await mesh.settle()
            mesh.nodes.remove(old)
            old.stop()
            with trio.fail_after(30):
                while stays.status().peers[1].state != "dead":
                    await trio.sleep(0.05)
            new = await mesh.add("new", model, 1.0, listen=("127.0.0.1", port), peers=(), insecure=True)
            with trio.fail_after(30):
                while "stays" not in {peer.node for peer in new.status().peers if peer.state == "alive"}:
                    await trio.sleep(0.05)
            await mesh.settle()

    trio.run(main)
