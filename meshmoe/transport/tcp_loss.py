"""What a lost packet costs whoever reads a TCP stream: not the data, but time.

The model, from RFC 8985 (RACK-TLP), RFC 6298 (RTO), and Linux, which has both:

- A parcel is cut into segments of 1448 bytes (1500 less 40 of headers and 12 of timestamps), each lost with the link's
  probability, independently.
- A lost segment that others follow is noticed by RACK one round trip later plus a reordering window of a quarter of it,
  and is sent again at once: 1.25 RTT. What follows it has arrived by then, but cannot be read before it.
- A lost last segment that nothing follows is probed for after 2 RTT (TLP; Linux adds 2 ms).
- A segment all alone in flight is only sent again by the retransmission timer: RTT + 200 ms, Linux's minimum. (TLP
  would wait for 2 RTT + 200 ms, to allow for a delayed ACK.)
- What is sent again can be lost again; from the second time on the retransmission timer does it, and doubles.

The congestion window is not modelled: at loss ``p`` a long transfer of a real link is also bounded to about
``1448 / RTT x 1.22 / sqrt(p)`` bytes a second (Mathis et al. 1997), which below 0.1 % at these presets is no bound.
"""

from __future__ import annotations

import math
import random

SEGMENT_BYTES = 1448
RACK_RTTS = 1.25
TLP_RTTS = 2.0
TLP_SLACK_S = 0.002
RTO_MIN_S = 0.2
RETRIES_MAX = 8


def retransmission_delay_s(
    size_bytes: int, *, followed: bool, rtt_s: float, segment_s: float, loss: float, chance: random.Random
) -> float:
    """Extra time until a parcel can be read whole.

    Args:
        size_bytes: Of the parcel.
        followed: Whether more data of the same connection follows right behind it.
        rtt_s: Round trip of the link.
        segment_s: Time that one segment takes to leave.
        loss: Probability that a segment is lost.
        chance: Where the dice come from.

    Returns:
        Seconds, usually zero.
    """
    segments = max(1, math.ceil(size_bytes / SEGMENT_BYTES))
    worst_s = 0.0
    # Counted from the last segment backwards; what was lost earlier than a repair takes is repaired in time.
    behind = _segments_until_loss(loss, chance)
    while behind < segments:
        repair_s = _repair_s(behind, segments, followed=followed, rtt_s=rtt_s)
        repair_s += _further_losses_s(rtt_s, loss, chance)
        worst_s = max(worst_s, repair_s - behind * segment_s)
        if behind * segment_s > RACK_RTTS * rtt_s + RTO_MIN_S:
            break
        behind += 1 + _segments_until_loss(loss, chance)
    return worst_s


def _repair_s(behind: int, segments: int, *, followed: bool, rtt_s: float) -> float:
    if behind or followed:
        return RACK_RTTS * rtt_s
    if segments > 1:
        return TLP_RTTS * rtt_s + TLP_SLACK_S
    return rtt_s + RTO_MIN_S


def _further_losses_s(rtt_s: float, loss: float, chance: random.Random) -> float:
    total_s, timeout_s = 0.0, rtt_s + RTO_MIN_S
    for _ in range(RETRIES_MAX):
        if chance.random() >= loss:
            break
        total_s += timeout_s
        timeout_s *= 2
    return total_s


def _segments_until_loss(loss: float, chance: random.Random) -> int:
    """How many segments pass before one is lost: geometric, drawn in one go."""
    if loss <= 0:
        return 1 << 62
    if loss >= 1:
        return 0
    return int(math.log(1.0 - chance.random()) / math.log1p(-loss))
