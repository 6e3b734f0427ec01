"""The shape of a link between two nodes, and the four presets that the whole project speaks of."""

from __future__ import annotations

import msgspec


class LinkShape(msgspec.Struct, frozen=True, kw_only=True):
    """A link as its users feel it; both directions are alike.

    Attributes:
        rtt_s: Round trip of a small message on the idle link; each direction takes half.
        rate_bytes_per_s: Bandwidth of each direction.
        jitter_s: Largest extra one-way delay, drawn evenly from zero up for every message.
        loss: Probability that a packet is lost (and sent again by the transport underneath).
    """

    rtt_s: float
    rate_bytes_per_s: float
    jitter_s: float = 0.0
    loss: float = 0.0


LINK_PRESETS: dict[str, LinkShape] = {
    "lan": LinkShape(rtt_s=0.3e-3, rate_bytes_per_s=1e9 / 8),
    "edge": LinkShape(rtt_s=1.2e-3, rate_bytes_per_s=500e6 / 8),
    "wifi": LinkShape(rtt_s=5e-3, rate_bytes_per_s=100e6 / 8, jitter_s=1e-3),
    "wan": LinkShape(rtt_s=20e-3, rate_bytes_per_s=50e6 / 8),
}
"""``lan``: switched gigabit. ``edge``: the DanceMoE paper's rate. ``wifi``: one room away. ``wan``: two sites."""
