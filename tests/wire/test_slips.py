"""Slips: the messages that compiled code writes are the messages that everybody else knows."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.errors import WireError
from meshmoe.wire.codec import CODEC
from meshmoe.wire.messages import ExpertCall, ExpertReply, ExpertRows
from meshmoe.wire.slips import CALL_NUMBERS, reply_slip

CALL, REPLY = CODEC.slip_header("call"), CODEC.slip_header("reply")


def call_slip(number, layer, budget_ms, rows, columns, experts):
    numbers = [number, layer, budget_ms, 2, rows, columns, len(experts)]
    for index, asked in experts:
        numbers += [index, len(asked), *asked]
    return struct.pack(f"<{len(numbers)}i", *numbers)


@given(
    number=st.integers(0, 2**31 - 1),
    layer=st.integers(0, 4095),
    budget_ms=st.integers(1, 600_000),
    experts=st.lists(
        st.tuples(st.integers(0, 65535), st.lists(st.integers(0, 8191), max_size=5)), min_size=1, max_size=6
    ),
)
def test_a_call_as_a_slip_is_that_call(number, layer, budget_ms, experts):
    frames = [CALL, call_slip(number, layer, budget_ms, 3, 4, experts), bytes(3 * 4 * 2), b"payload"]
    decoded = CODEC.decode(frames)
    rows = [ExpertRows(index, asked) for index, asked in experts]
    assert decoded.message == ExpertCall(id=number, layer=layer, experts=rows, budget_ms=budget_ms, decode=True)
    assert decoded.tensor.header.dtype == "bf16"
    assert (decoded.tensor.header.rows, decoded.tensor.header.columns) == (3, 4)
    assert decoded.payload == [b"payload"]


def test_a_reply_as_a_slip_is_that_reply():
    decoded = CODEC.decode([REPLY, reply_slip(12, "f32", 2, 5), bytes(40)])
    assert decoded.message == ExpertReply(id=12)
    assert decoded.tensor.header.size_bytes == 40
    assert len(decoded.tensor.data) == 40


GOOD = call_slip(1, 2, 3, 1, 2, [(4, [0])])


@pytest.mark.parametrize(
    "slip",
    [
        b"",
        GOOD[:-1],
        GOOD[:-4],
        GOOD + bytes(4),
        GOOD[: 4 * CALL_NUMBERS],
        call_slip(-1, 2, 3, 1, 2, [(4, [0])]),
        call_slip(1, 4096, 3, 1, 2, [(4, [0])]),
        call_slip(1, 2, 0, 1, 2, [(4, [0])]),
        call_slip(1, 2, 3, 0, 2, [(4, [0])]),
        call_slip(1, 2, 3, 1, 2, [(-4, [0])]),
        call_slip(1, 2, 3, 1, 2, [(4, [-1])]),
        call_slip(1, 2, 3, 2, 2, [(4, [0])]),
        struct.pack("<7i", 1, 2, 3, 3, 1, 2, 1) + struct.pack("<3i", 4, 1, 0),
        struct.pack("<7i", 1, 2, 3, 2, 1, 2, 1) + struct.pack("<3i", 4, 2**31 - 1, 0),
        bytes(4 * ((16 << 10) + 1)),
    ],
)
def test_a_bad_slip_is_one_line(slip):
    with pytest.raises(WireError) as caught:
        CODEC.decode([CALL, slip, bytes(4)])
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=64), st.binary(max_size=16))
def test_whatever_comes_is_a_message_or_a_wire_error(slip, data):
    for header in (CALL, REPLY):
        try:
            CODEC.decode([header, slip, data])
        except WireError:
            continue


def test_a_slip_needs_its_frames():
    for frames in ([CALL], [CALL, GOOD]):
        with pytest.raises(WireError, match="frames are missing"):
            CODEC.decode(frames)
