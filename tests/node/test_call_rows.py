"""What leaves for a peer: each row once, in its own bytes, and every expert finds its rows again."""

import pytest
import torch

from meshmoe.node.call_rows import rows_to_send
from meshmoe.wire.tensors import RowsInMemory, unpack_tensor

CALLS = [
    {4: [0]},
    {7: [1, 3], 2: [0, 1, 2, 3]},
    {3: [2], 9: [0, 2]},
    {5: [3], 1: [1]},
]


@pytest.mark.parametrize("by_address", [False, True], ids=["by torch", "by address"])
@pytest.mark.parametrize("hidden", [8, 4096], ids=["copied", "as it lies"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", CALLS, ids=str)
def test_experts_find_their_rows(rows, dtype, hidden, by_address):
    x = torch.randn(4, hidden).to(dtype)
    frame, wanted = rows_to_send(x, rows, RowsInMemory.of(x) if by_address else None)
    sent = unpack_tensor(frame)
    assert len(sent) == len({row for numbers in rows.values() for row in numbers})
    assert [one.index for one in wanted] == sorted(rows)
    for one in wanted:
        assert torch.equal(sent[one.rows] if one.rows else sent, x[rows[one.index]])


def test_of_one_row_nobody_needs_numbers():
    frame, wanted = rows_to_send(torch.ones(1, 8), {6: [0], 2: [0]})
    assert frame.header.rows == 1
    assert [(one.index, one.rows) for one in wanted] == [(2, []), (6, [])]
