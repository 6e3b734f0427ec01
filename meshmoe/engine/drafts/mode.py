"""What the user said about drafts: ``auto``, ``off``, a number, or ``lookup``."""

from __future__ import annotations

from typing import Literal

import msgspec

from meshmoe.core.errors import ConfigError
from meshmoe.engine.drafts.acceptance import DEPTH_MAX


class DraftMode(msgspec.Struct, frozen=True):
    """How tokens are drafted.

    Attributes:
        kind: ``auto`` chooses drafter and length in each pass by what was measured, ``off`` drafts nothing, ``fixed``
            always drafts ``length`` tokens with what is resident, ``lookup`` as many from the text itself.
        length: Tokens a pass, at most; 0 for ``off``.
    """

    kind: Literal["auto", "off", "fixed", "lookup"]
    length: int


AUTO = DraftMode("auto", DEPTH_MAX)
OFF = DraftMode("off", 0)


def parse_draft_mode(text: str) -> DraftMode:
    """Read ``auto``, ``off``, ``lookup``, or how many tokens to draft in each pass.

    Raises:
        ConfigError: It is none of these.
    """
    match text:
        case "auto":
            return AUTO
        case "off" | "0":
            return OFF
        case "lookup":
            return DraftMode("lookup", DEPTH_MAX)
    if text.isdecimal() and len(text) < 4 and 0 < int(text) <= DEPTH_MAX:
        return DraftMode("fixed", int(text))
    raise ConfigError(f"drafts are {text!r}; say auto, off, lookup, or how many tokens a pass, 1 to {DEPTH_MAX}")
