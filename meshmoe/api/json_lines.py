"""JSON that stays on one line for every reader.

JSON leaves three characters unescaped that Unicode counts as line ends, and readers that split text with
``str.splitlines`` (httpx does) would cut an event in two at them. They can only stand inside strings, where an escape
means the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def encode_line(content: Any) -> bytes:
    """Encode ``content`` as JSON without any line end, and without one at its end."""
    encoded = msgspec.json.encode(content)
    for raw, escaped in _LINE_ENDS:
        if raw in encoded:
            encoded = encoded.replace(raw, escaped)
    return encoded
