"""Parcels as single messages."""

from hypothesis import given
from hypothesis import strategies as st

from meshmoe.transport.envelope import seal, unseal
from meshmoe.wire.frames import FRAMES_MAX


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=FRAMES_MAX))
def test_frames_come_out_as_they_went_in(frames):
    opened = unseal(memoryview(seal(frames)))
    assert opened is not None
    assert [bytes(frame) for frame in opened] == frames


@given(st.binary(max_size=200))
def test_anything_else_is_refused_or_taken_apart_within_its_bounds(message):
    opened = unseal(memoryview(message))
    assert opened is None or 1 <= len(opened) <= FRAMES_MAX
