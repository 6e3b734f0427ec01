"""Packing and the typed values."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.endpoints import Endpoints
from meshmoe.gossip import Agreement, Claims, Demand, Holdings, Link, Links, Load, NodeInfo, key_of
from meshmoe.gossip.packing import (
    RATE_UNIT,
    RATES,
    pack_bitmap,
    pack_numbers,
    pack_rate,
    unpack_bitmap,
    unpack_numbers,
)
from meshmoe.gossip.values import VALUE_BYTES_MAX, pack, unpack

HERE = Endpoints("10.0.0.1", 7000, 7001, 7002)
VALUES = [
    NodeInfo("serving", HERE, "0.1.0", "a" * 40, 10**9, 120, 80_000, "http://10.0.0.1:8000"),
    Load(10**8, 9 * 10**8, 3, 1500),
    Links([Link("b", 1200, 60_000_000), Link("c", 300)]),
    Agreement(bytes(range(16))),
    Holdings.of(3, [0, 5, 31]),
    Claims.of(3, {0: 1, 5: 300, 31: 2**40}),
    Demand.of(3, [0.0, 1.5, 0.0, 200.0, 0.0]),
]
KEYS = ["node", "load", "links", "agreement", "holdings/3", "claims/3", "demand/3"]


@given(st.sets(st.integers(0, 600)))
def test_bitmaps(indices):
    packed = pack_bitmap(indices)
    assert list(unpack_bitmap(packed)) == sorted(indices)
    assert len(packed) == (max(indices) // 8 + 1 if indices else 0)


@given(st.lists(st.integers(0, 2**63 - 1)))
def test_numbers(numbers):
    assert list(unpack_numbers(pack_numbers(numbers))) == numbers


@pytest.mark.parametrize("data", [b"\x80", b"\xff" * 10, b"\x01\x80"])
def test_broken_numbers(data):
    with pytest.raises(ValueError, match="number"):
        list(unpack_numbers(data))


@given(st.floats(RATE_UNIT, 350_000))
def test_a_rate_is_off_by_at_most_half_a_step(rate):
    assert RATES[pack_rate(rate)] == pytest.approx(rate, rel=0.045)


@pytest.mark.parametrize(("rate", "byte"), [(0.0, 0), (RATE_UNIT / 3, 0), (RATE_UNIT, 1), (1e9, 255)])
def test_the_ends_of_the_scale(rate, byte):
    assert pack_rate(rate) == byte


def test_rates_are_stable_under_repacking():
    assert [pack_rate(rate) for rate in RATES] == list(range(256))


@pytest.mark.parametrize(("value", "key"), list(zip(VALUES, KEYS, strict=True)), ids=KEYS)
def test_values_survive_packing(value, key):
    assert key_of(value) == key
    assert unpack(key, pack(value)) == value


def test_contents_come_back():
    assert Holdings.of(3, [5, 0, 31]).indices() == [0, 5, 31]
    assert Claims.of(3, {31: 7, 0: 1}).epoch_of() == {0: 1, 31: 7}
    assert Demand.of(0, [0.0, 2.0, 0.0]).rates_per_s() == [0.0, pytest.approx(2.0, rel=0.045)]


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("load", b""),
        ("load", b"\xc1"),
        ("load", pack(Links([]))),
        ("load/3", pack(Load(1, 1))),
        ("holdings", pack(Holdings.of(3, [1]))),
        ("holdings/4", pack(Holdings.of(3, [1]))),  # the value says another layer than the key
        ("claims/3", pack(Claims(3, b"\x03", b"\x01"))),  # two experts, one epoch
        ("agreement", msgspec.msgpack.encode([b"short"])),
        ("node", pack(NodeInfo("serving", HERE, "x"))[:-1]),
        ("weather", b"\x90"),  # a key of a later software version
    ],
)
def test_what_cannot_be_read_is_none(key, data):
    assert unpack(key, data) is None


@given(st.sampled_from(KEYS), st.binary(max_size=60))
def test_reading_never_raises(key, data):
    unpack(key, data)


def test_too_large_a_value_is_refused():
    crowd = Links([Link("n" * 60, 1 << 39, 1 << 49)] * 200)
    assert len(msgspec.msgpack.encode(crowd)) > VALUE_BYTES_MAX
    with pytest.raises(ValueError, match="links takes"):
        pack(crowd)


def test_values_are_compact():
    """What one change costs: figures for docs/decisions/gossip-entries.md."""
    sizes = {key_of(value): len(pack(value)) for value in VALUES}
    assert sizes["load"] < 20
    assert sizes["holdings/3"] < 10
    assert len(pack(Demand.of(0, [1.0] * 64))) < 70
