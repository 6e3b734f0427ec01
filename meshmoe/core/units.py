"""Sizes, rates, durations and shares as people write them, and back.

Decimal prefixes are powers of 1000 (``500MB``), binary ones powers of 1024 (``512MiB``); rates are bits or bytes a
second (``500Mbit/s``, ``30GB/s``), as on the labels of links and memory.
"""

from __future__ import annotations

import re

from meshmoe.core.errors import ConfigError

_PREFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*\Z", re.IGNORECASE)
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?(bit|b)(?:/s|ps)\s*\Z", re.IGNORECASE)
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min|h)\s*\Z")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*\Z")


def parse_size(text: str) -> int:
    """Read a number of bytes such as ``512MiB``, ``1.5 GB`` or ``4096``.

    Raises:
        ConfigError: The text is not a size.
    """
    match = _SIZE.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size: write it like 512MiB, 1.5GB or 4096")
    return int(float(match[1]) * _PREFIX[(match[2] or "").lower()])


def parse_rate(text: str) -> float:
    """Read a rate such as ``500Mbit/s`` or ``30GB/s``; the result is in bytes a second.

    Raises:
        ConfigError: The text is not a rate.
    """
    match = _RATE.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a rate: write it like 500Mbit/s or 30GB/s")
    value = float(match[1]) * _PREFIX[(match[2] or "").lower()]
    return value / 8 if match[3].lower() == "bit" else value


def parse_duration(text: str) -> float:
    """Read a duration such as ``1.2ms``, ``20 us`` or ``3s``; the result is in seconds.

    Raises:
        ConfigError: The text is not a duration.
    """
    match = _DURATION.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a duration: write it like 1.2ms, 20us or 3s")
    return float(match[1]) * _SECONDS[match[2]]


def parse_share(text: str) -> float:
    """Read a share such as ``40%``; the result is a fraction, and may exceed one.

    Raises:
        ConfigError: The text is not a percentage.
    """
    match = _SHARE.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a share: write it like 40%")
    return float(match[1]) / 100


def format_size(size_bytes: float) -> str:
    """Write a number of bytes with three digits and a binary prefix: ``23.2 MiB``."""
    value, prefixes = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    for prefix in prefixes:
        if abs(value) < 1000 or prefix == prefixes[-1]:
            return (
                f"{value:.0f} B" if prefix == "B" else f"{value:.{max(0, 2 - len(str(int(abs(value)))) + 1)}f} {prefix}"
            )
        value /= 1024
    raise AssertionError("the last prefix always returns")


def format_rate(bytes_per_s: float) -> str:
    """Write a rate in bits a second with a decimal prefix: ``500 Mbit/s``."""
    value = bytes_per_s * 8
    for prefix in ("", "k", "M"):
        if abs(value) < 1000:
            return f"{value:.3g} {prefix}bit/s"
        value /= 1000
    return f"{value:.3g} Gbit/s"


def format_duration(duration_s: float) -> str:
    """Write a duration with three digits: ``1.20 ms``, ``35 us``, ``2.5 s``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if duration_s >= scale:
            return f"{duration_s / scale:.3g} {unit}"
    return f"{duration_s * 1e6:.3g} us"
