"""Quantities as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.core.errors import ConfigError
from meshmoe.core.units import (
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4096", 4096), ("512MiB", 512 * 2**20), ("1.5 GB", 1_500_000_000), ("2 kib", 2048), ("7B", 7)],
)
def test_sizes(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(("text", "rate"), [("500Mbit/s", 62.5e6), ("30GB/s", 30e9), ("1 Gbit/s", 125e6)])
def test_rates(text, rate):
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize(("text", "seconds"), [("1.2ms", 1.2e-3), ("20 us", 20e-6), ("3s", 3.0), ("2min", 120.0)])
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("parse", [parse_size, parse_rate, parse_duration, parse_share])
@pytest.mark.parametrize("text", ["", "x", "-1", "1 2", "12 parsecs", "%"])
def test_nonsense_is_refused(parse, text):
    with pytest.raises(ConfigError):
        parse(text)


@given(st.integers(0, 2**50))
def test_formatted_sizes_read_back_within_rounding(size_bytes):
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=6e-3)


def test_formats():
    assert format_size(24_355_360) == "23.2 MiB"
    assert format_rate(62.5e6) == "500 Mbit/s"
    assert format_duration(1.2e-3) == "1.2 ms"
    assert format_duration(35e-6) == "35 us"
