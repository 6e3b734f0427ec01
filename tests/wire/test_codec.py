"""Every message survives the wire; nothing that is not a message gets through, and nothing but WireError comes out."""

import time

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.errors import WireError
from meshmoe.core.messages import Message
from meshmoe.wire.codec import CODEC, Codec, VersionError, decode, encode
from meshmoe.wire.frames import FRAMES_MAX, HEADER_BYTES_MAX, ITEM_BYTES, PARCEL_BYTES_MAX, TensorFrame, TensorHeader
from meshmoe.wire.messages import PROTOCOL_VERSION, ExpertCall, ExpertReply, ExpertRows, Hello
from tests.wire.strategies import messages

CALL = ExpertCall(id=7, layer=3, experts=[ExpertRows(1), ExpertRows(4, [0, 2])], budget_ms=500)


class Blob(Message, tag="blob"):
    data: bytes
    table: dict[int, float] = msgspec.field(default_factory=dict)


def packed(**changes):
    fields = {"t": "reply", "v": PROTOCOL_VERSION, "id": 1} | changes
    return msgpack.packb({key: value for key, value in fields.items() if value is not ...})


@given(st.data())
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("message_type", CODEC.message_types, ids=lambda t: t.__name__)
def test_every_message_type_roundtrips(message_type, data):
    message = data.draw(messages(message_type))
    payload = data.draw(st.lists(st.binary(max_size=40), max_size=3))
    decoded = decode(encode(message, *payload))
    assert decoded.message == message
    assert type(decoded.message) is message_type
    assert [bytes(frame) for frame in decoded.payload] == payload
    assert decoded.tensor is None


@given(dtype=st.sampled_from(sorted(ITEM_BYTES)), rows=st.integers(1, 20), columns=st.integers(1, 20), more=st.binary())
def test_a_tensor_travels_between_message_and_payload(dtype, rows, columns, more):
    header = TensorHeader(dtype, rows, columns)
    data = bytes(range(256)) * 8
    tensor = TensorFrame(header, data[: header.size_bytes])
    decoded = decode(encode(CALL, more, tensor=tensor))
    assert decoded == (CALL, [more], tensor)


def test_bytes_and_whole_keys_survive():
    codec = Codec([Blob])
    message = Blob(b"\xff\0", {3: 0.5})
    assert codec.decode(codec.encode(message)).message == message


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_arbitrary_bytes_raise_nothing_but_wire_errors(frames):
    try:
        decode(frames)
    except WireError as error:
        assert "\n" not in str(error)


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_damaged_messages_raise_nothing_but_wire_errors(data):
    frames = encode(data.draw(st.one_of([messages(t) for t in CODEC.message_types])), b"payload")
    header = bytearray(frames[0])
    for _ in range(data.draw(st.integers(1, 4))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode([bytes(header[: data.draw(st.integers(0, len(header)))]), *frames[1:]])
    except WireError as error:
        assert "\n" not in str(error)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=10,
)


@given(
    tag=st.sampled_from([t.__struct_config__.tag for t in CODEC.message_types]),
    fields=st.dictionaries(
        st.sampled_from([f for t in CODEC.message_types for f in t.__struct_encode_fields__] + ["x", "t", "v"]), JSONISH
    ),
)
@settings(deadline=None, max_examples=25)
def test_well_formed_maps_with_wrong_values_raise_nothing_but_wire_errors(tag, fields):
    header = msgpack.packb({"t": tag, "v": PROTOCOL_VERSION} | fields)
    try:
        decode([header, b"\0" * 8])
    except WireError as error:
        assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("frames", "line"),
    [
        ([], "empty parcel"),
        ([b""], "not msgpack"),
        ([b"\xc1"], "not msgpack"),
        ([b"\xc0"], "not a map"),
        ([b"\x91" * 3000], "not msgpack"),
        ([packed() + b"\0"], "not msgpack"),
        ([b"\x81\xa1v\xd6\xff\0\0\0\0"], "not msgpack"),  # a timestamp
        ([b"\x81\xa1v\xc7\0\x05"], "not msgpack"),  # an extension of no bytes
        ([b"\x81\xc0\xc0"], "not msgpack"),  # a key that is no text
        ([b"\xdd\x7f\xff\xff\xff"], "not msgpack"),
        ([b"\x81\xa1t\xa1\xff"], "not msgpack"),  # not UTF-8
        ([packed(v=...)], "without a protocol version"),
        ([packed(v=True)], "without a protocol version"),
        ([packed(v="1")], "without a protocol version"),
        ([packed(t=...)], "unknown message type None"),
        ([packed(t="nonsense")], "unknown message type 'nonsense'"),
        ([packed(t=["reply"])], "unknown message type"),
        ([packed(id=-1)], "invalid ExpertReply"),
        ([packed(id="one")], "invalid ExpertReply"),
        ([packed(id=...)], "invalid ExpertReply"),
        ([packed(x=["f32", 1, 1])], "its frame is missing"),
        ([packed(x=["f32", 1, 1]), b"123"], "needs"),
        ([packed(x=["f64", 1, 1]), b"12345678"], "invalid tensor"),
        ([packed(x=["f32", 0, 1]), b""], "invalid tensor"),
        ([packed(x=["f32", -1, -1]), b"1234"], "invalid tensor"),
        ([packed(x=["f32", 1 << 20, 1]), b"1234"], "invalid tensor"),
        ([packed(x=["f32", 1, 1, 1]), b"1234"], "invalid tensor"),
        ([packed(x=[1, 1]), b"1234"], "invalid tensor"),
        ([b"\0" * (HEADER_BYTES_MAX + 1)], "the limit is"),
        ([packed()] + [b""] * FRAMES_MAX, "frames, the limit is"),
        ([packed(), bytearray(PARCEL_BYTES_MAX)], "the limit is"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(frames, line):
    with pytest.raises(WireError) as caught:
        decode(frames)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("theirs", [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1, -5, 1 << 63])
def test_another_version_is_named_whatever_else_the_message_has(theirs):
    with pytest.raises(VersionError) as caught:
        decode([packed(v=theirs, t="from the future")])
    assert caught.value.theirs == theirs
    assert caught.value.ours == PROTOCOL_VERSION
    assert str(theirs) in str(caught.value)


def test_unknown_fields_are_passed_over():
    assert decode([packed(later=[1, 2])]).message == ExpertReply(id=1)


def test_too_large_messages_are_not_sent():
    rows = ExpertRows(0, list(range(8000)))
    with pytest.raises(WireError, match="the limit is"):
        encode(ExpertCall(id=1, layer=0, experts=[rows] * 20, budget_ms=1))
    with pytest.raises(WireError, match="the limit is"):
        encode(ExpertReply(id=1), bytearray(PARCEL_BYTES_MAX))
    assert decode(encode(CALL)).message == CALL  # the packer is as good as new


def test_the_largest_call_fits():
    rows = list(range(8192))
    call = ExpertCall(id=1, layer=0, experts=[ExpertRows(index, rows) for index in range(8)], budget_ms=1)
    assert decode(encode(call)).message == call


def test_decoding_shares_the_payload_and_takes_views():
    payload = bytearray(b"weights")
    decoded = decode([memoryview(frame) for frame in encode(ExpertReply(id=1), payload)])
    payload[0] = 0
    assert bytes(decoded.payload[0]) == b"\0eights"


def test_a_codec_refuses_ambiguous_message_types():
    class Same(Message, tag="blob"):
        pass

    class Reserved(Message, tag="reserved"):
        v: int

    with pytest.raises(AssertionError, match="two messages"):
        Codec([Blob, Same])
    with pytest.raises(AssertionError, match="reserved field"):
        Codec([Reserved])


def test_nested_lists_cost_no_gigabytes():
    import resource

    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hostile = (b"\xdc\x20\x00" * 1500)[:HEADER_BYTES_MAX]
    with pytest.raises(WireError):
        decode([hostile])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000


def test_versions_are_told_apart_before_anything_else_is_read():
    other = Codec([Blob], version=9)
    with pytest.raises(VersionError, match=rf"version 9.*speaks {PROTOCOL_VERSION}"):
        decode(other.encode(Blob(b"")))


def test_hello_with_a_hostile_host_is_refused():
    hello = Hello(node="a", generation=1, endpoints=Endpoints("h" * 300, 1), software="x")
    with pytest.raises(WireError, match="invalid Hello"):
        decode(encode(hello))


def test_encode_and_decode_are_fast_enough():
    """Loose, as the machine is shared: 7 us together when idle. Catches a rebuilt type table (25 us a message)."""
    best_s = min(_one_round() for _ in range(20))
    assert best_s < 60e-6


def _one_round():
    start_s = time.perf_counter()
    for _ in range(100):
        decode(encode(CALL))
    return (time.perf_counter() - start_s) / 100


def test_messages_are_small():
    assert len(encode(CALL)[0]) < 70
    assert msgspec.msgpack.decode(encode(CALL)[0])["t"] == "call"
