"""The custody state of an earlier life: kept, or one line and a new beginning."""

import logging

import pytest
import trio

from meshmoe.core.ids import NodeId
from meshmoe.custody import CustodyState
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.node.custody_file import CustodyFile
from tests.node.support import GREEDY, open_test_mesh, written

ME = NodeId("me")
MODEL, OTHER = "5a" * 20, "a5" * 20


def test_what_was_written_is_read(tmp_path):
    file = CustodyFile(tmp_path / "not there yet")
    assert (file.last_generation, file.state_for(MODEL, ME)) == (0, None)
    file.write(CustodyState(MODEL, ME, 17))
    again = CustodyFile(tmp_path / "not there yet")
    assert again.last_generation == 17
    assert again.state_for(MODEL, ME) == CustodyState(MODEL, ME, 17)


@pytest.mark.parametrize(
    ("model", "node", "line"), [(OTHER, ME, "of another model"), (MODEL, NodeId("you"), "of another node")]
)
def test_a_state_that_is_not_ours_is_one_line_and_its_generation_still_counts(tmp_path, caplog, model, node, line):
    CustodyFile(tmp_path).write(CustodyState(model, node, 17))
    file = CustodyFile(tmp_path)
    assert file.last_generation == 17
    assert file.state_for(MODEL, ME) is None
    assert [record.getMessage() for record in caplog.records if line in record.getMessage()]


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_state_is_one_line(tmp_path, caplog, damage):
    file = CustodyFile(tmp_path)
    file.write(CustodyState(MODEL, ME, 17))
    content = file.path.read_bytes()
    file.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage is None else damage)
    again = CustodyFile(tmp_path)
    assert (again.last_generation, again.state_for(MODEL, ME)) == (0, None)
    assert len([record for record in caplog.records if "damaged" in record.getMessage()]) == 1


def test_a_directory_that_cannot_be_written_costs_a_line(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    file = CustodyFile(tmp_path / "file")
    with caplog.at_level(logging.ERROR):
        file.write(CustodyState(MODEL, ME, 1))
    assert file.write_failures == 1
    assert "cannot be kept" in caplog.text


def test_a_node_whose_state_is_damaged_rejoins_empty(tmp_path, caplog):
    model = make_tiny_checkpoint("qwen3_moe", tmp_path / "model", seed=0)

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            await mesh.add("stays", model, 1.0)
            goes = await mesh.add("goes", model, 1.0)
            await mesh.settle()
            tokens = await written(goes, (1, 2, 3), GREEDY)
            async with goes.leave() as progress:
                async for _ in progress:
                    pass
            mesh.nodes.remove(goes)
            path = tmp_path / "goes" / "custody.msgpack"
            path.write_bytes(path.read_bytes()[:-5])
            again = await mesh.add("goes", model, 1.0)
            await mesh.settle()
            assert again.generation > goes.generation
            assert await written(again, (1, 2, 3), GREEDY) == tokens

    trio.run(main)
    assert "custody.msgpack: the custody state is damaged" in caplog.text
