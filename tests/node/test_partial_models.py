"""Nodes whose --model directory has only part of a model, as `meshmoe model fetch --part` leaves it."""

import pytest
import trio

from meshmoe.core.errors import CheckpointError, MeshmoeError
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.portions import experts_of_part
from meshmoe.model.store import PartialStore
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.model.unit_names import UnitName
from tests.model.stores import fill
from tests.node.support import GREEDY, SEEDED, open_test_mesh, written, written_alone

PROMPT = (5, 17, 40, 8)


@pytest.fixture
def model(tmp_path):
    return make_tiny_checkpoint("qwen3_moe", tmp_path / "whole")


def part_of(model, directory, part):
    """A directory with the trunk and one part of the experts."""
    checkpoint = Checkpoint.open(model)
    store = PartialStore(directory, checkpoint.manifest())
    chosen = experts_of_part(checkpoint.layout, part) if part is not None else ()
    fill(checkpoint, store, [UnitName.of_expert(expert) for expert in sorted(chosen)])
    store.close()
    return directory


def custody(node):
    return set(node.parts.custody.machine.custody)


def test_two_parts_make_one_model(tmp_path, model):
    """Each node claims only what it has (and got); together they write what one whole node writes."""
    first_part, second_part = part_of(model, tmp_path / "a" / "m", (1, 1, 2)), part_of(model, tmp_path / "b", (2, 2, 2))
    theirs = PartialStore.open(second_part).stored_experts()

    async def main():
        async with open_test_mesh(tmp_path / "nodes") as mesh:
            first = await mesh.add("first", first_part, 0.7)
            with trio.fail_after(20):
                while len(first.pool.experts()) < len(first.model.experts) // 2:
                    await trio.sleep(0.02)
            assert not custody(first) & theirs, "nobody promises what it lacks"
            assert not set(first.pool.experts()) & theirs
            with pytest.raises(MeshmoeError):
                await written(first, PROMPT, GREEDY)
            second = await mesh.add("second", second_part, 0.7)
            await mesh.settle()
            return [await written(node, PROMPT, how) for node in (first, second) for how in (GREEDY, SEEDED)]

    alone = trio.run(written_alone, model, [PROMPT], [GREEDY, SEEDED])
    assert trio.run(main) == [*alone, *alone]


def test_a_trunk_alone_begins_a_mesh_that_a_whole_copy_completes(tmp_path, model):
    trunk = part_of(model, tmp_path / "trunk", None)

    async def main():
        async with open_test_mesh(tmp_path / "nodes") as mesh:
            bare = await mesh.add("bare", trunk, 0.5)
            assert not bare.pool.experts()
            assert not custody(bare)
            await mesh.add("whole", model, 1.0)
            await mesh.settle()
            return await written(bare, PROMPT, GREEDY)

    assert trio.run(main) == trio.run(written_alone, model, [PROMPT], [GREEDY])[0]


def test_experts_that_no_disk_has_are_named(tmp_path, model):
    """One part alone: requests that need the others fail and say which; nothing hangs."""
    part = part_of(model, tmp_path / "part", (1, 1, 2))

    async def main():
        async with open_test_mesh(tmp_path / "nodes") as mesh:
            node = await mesh.add("only", part, 1.0)
            with trio.fail_after(90):
                while not node.status().serving.ready:
                    await trio.sleep(0.1)
            with pytest.raises(MeshmoeError, match=r"expert \d+/\d+"), trio.fail_after(60):
                await written(node, PROMPT, GREEDY)
            assert len(node.pool.experts()) == len(node.model.experts) // 2

    trio.run(main)


def test_a_directory_in_use_or_incomplete_is_one_line(tmp_path, model):
    part = part_of(model, tmp_path / "part", (1, 1, 2))

    async def twice():
        async with open_test_mesh(tmp_path / "nodes") as mesh:
            await mesh.add("one", part, 1.0)
            await mesh.add("two", part, 1.0)

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(twice)
    assert caught.group_contains(CheckpointError, match="is in use by another node")

    torn = part_of(model, tmp_path / "torn", (1, 1, 2))
    (torn / "trunk.bin").unlink()

    async def without_trunk():
        async with open_test_mesh(tmp_path / "more") as mesh:
            await mesh.add("one", torn, 1.0)

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(without_trunk)
    assert caught.group_contains(CheckpointError, match="lacks the trunk: run the `meshmoe model fetch`")


def test_a_damaged_expert_is_not_claimed_but_fetched(tmp_path, model):
    part = part_of(model, tmp_path / "part", (1, 1, 2))
    expert = min(PartialStore.open(part).stored_experts())
    path = part / UnitName.of_expert(expert).path
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)

    async def main():
        async with open_test_mesh(tmp_path / "nodes") as mesh:
            node = await mesh.add("damaged", part, 1.0)
            with trio.fail_after(20):
                while path.exists():
                    await trio.sleep(0.02)
            await trio.sleep(0.5)
            assert expert not in custody(node)
            assert expert not in node.pool.experts()
            await mesh.add("whole", model, 1.0)
            await mesh.settle()
            return await written(node, PROMPT, GREEDY)

    assert trio.run(main) == trio.run(written_alone, model, [PROMPT], [GREEDY])[0]
