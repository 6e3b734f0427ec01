"""What the forwarding process is told, and says; without numba, for whoever starts it."""

from __future__ import annotations

import msgspec

from meshmoe.core.links import LinkShape

UP = "up"
"""What the process says once packets pass."""


class WiresPlan(msgspec.Struct, frozen=True):
    """What to make.

    Attributes:
        nodes: How many.
        links: Pairs of nodes by number, with the link's shape.
        tally_path: A file that is made and counted up in, for others to read: see `figures`.
        seed: Of jitter and loss.
    """

    nodes: int
    links: list[tuple[int, int, LinkShape]]
    tally_path: str
    seed: int = 0
