"""Tensors travel bit by bit, and nothing else than what was described is accepted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.errors import WireError
from meshmoe.wire.frames import ITEM_BYTES, TensorFrame, TensorHeader
from meshmoe.wire.tensors import ALIGNMENT_BYTES, pack_tensor, unpack_tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def bits(tensor):
    return tensor.view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4096), (7, 33), (512, 256)])
def test_roundtrip_is_bitwise(dtype, shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    header, data = pack_tensor(tensor)
    back = unpack_tensor(TensorFrame(header, bytes(data)))
    assert back.dtype == dtype
    assert torch.equal(bits(back), bits(tensor))


def test_every_bit_pattern_of_16_bits_survives():
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).reshape(256, 256)
    for dtype in (torch.float16, torch.bfloat16):
        back = unpack_tensor(pack_tensor(patterns.view(dtype)))
        assert torch.equal(back.view(torch.int16), patterns)


@pytest.mark.parametrize("rows", [4, 4096])
def test_packing_copies_little_tensors_only_and_unpacking_all(rows):
    tensor = torch.zeros(rows, 8)
    frame = pack_tensor(tensor)
    back = unpack_tensor(frame)
    tensor[0, 0] = 1.0
    assert bytes(frame.data[:4]) == (b"\0\0\0\0" if rows == 4 else b"\0\0\x80\x3f")
    assert back[0, 0] == 0


@given(offset=st.integers(0, 63), columns=st.integers(1, 100))
def test_unpacked_memory_is_aligned_wherever_the_frame_lies(offset, columns):
    header = TensorHeader("bf16", 3, columns)
    buffer = bytearray(offset + header.size_bytes)
    tensor = unpack_tensor(TensorFrame(header, memoryview(buffer)[offset:]))
    assert tensor.data_ptr() % ALIGNMENT_BYTES == 0
    assert tensor.is_contiguous()


def test_packed_frame_keeps_the_memory_alive():
    frame = pack_tensor(torch.full((64, 64), 2.0))
    for _ in range(20):
        torch.zeros(64, 64)
    assert torch.equal(unpack_tensor(frame), torch.full((64, 64), 2.0))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3),
        torch.zeros(2, 2, 2),
        torch.zeros(0, 4),
        torch.zeros(4, 6).t(),
        torch.zeros(4, 6)[:, :3],
        torch.zeros(2, 2, dtype=torch.int32),
        torch.zeros(2, 2, dtype=torch.float64),
    ],
)
def test_other_tensors_are_refused(tensor):
    with pytest.raises(ValueError, match="cannot send a tensor"):
        pack_tensor(tensor)


def test_tensors_that_require_grad_can_be_sent():
    assert len(pack_tensor(torch.zeros(2, 2, requires_grad=True)).data) == 16


@pytest.mark.parametrize("length", [0, 1, 15, 17])
def test_wrong_length_is_a_wire_error(length):
    with pytest.raises(WireError, match="tensor frame"):
        unpack_tensor(TensorFrame(TensorHeader("f32", 2, 2), b"\0" * length))


def test_item_sizes_are_torchs():
    for code, dtype in zip(("f32", "f16", "bf16"), DTYPES, strict=True):
        assert ITEM_BYTES[code] == dtype.itemsize
