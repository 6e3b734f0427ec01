"""What all messages share: the tagged base struct and the bounded field types.

A message is a frozen msgspec struct with a tag ``t``. The packages that own a protocol define its messages on this
base; `meshmoe.wire` joins them into one union and is the only place that knows bytes.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

NodeName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
Generation = Annotated[int, Meta(ge=0, lt=1 << 62)]
CallId = Annotated[int, Meta(ge=0, lt=1 << 62)]
LayerIndex = Annotated[int, Meta(ge=0, lt=4096)]
ExpertIndex = Annotated[int, Meta(ge=0, lt=65536)]
ShortText = Annotated[str, Meta(max_length=500)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{40}\Z")]
ByteCount = Annotated[int, Meta(ge=0, lt=1 << 50)]


class Message(msgspec.Struct, tag_field="t", frozen=True, omit_defaults=True):
    """Base of every message: subclasses name their tag."""
