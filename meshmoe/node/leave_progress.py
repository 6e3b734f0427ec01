"""What a leaving node tells whoever asked it to leave, step by step."""

from __future__ import annotations

import msgspec


class LeaveProgress(msgspec.Struct, frozen=True):
    """A step of leaving.

    Attributes:
        remaining: Experts in this node's custody that still need another custodian.
        total: How many there were.
        text: What is being done, in words.
    """

    remaining: int
    total: int
    text: str
