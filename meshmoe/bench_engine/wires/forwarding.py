"""Packets from TUN device to TUN device, each as late as its link makes it: compiled, one thread, no interpreter lock.

A *line* is one direction of a link, a row of int64 words in nanoseconds. It sends one packet after the other at its
rate; what has left it arrives after the delay, and never before its predecessor:

    begins  = max(now, FREE_NS)            dropped where that is more than QUEUE_NS_MAX away
    FREE_NS = begins + size x PS_PER_BYTE
    due     = max(LAST_NS, FREE_NS + DELAY_NS + chance x JITTER_NS)

A lost packet takes its time on the line and does not arrive: here TCP itself sends it again. Packets wait in one pool,
a chain for each line. All functions stand in this one file, since numba looks at no other one when it decides whether
compiled code is still good.
"""

from __future__ import annotations

from collections.abc import Callable
from time import CLOCK_MONOTONIC
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types

Function = TypeVar("Function", bound=Callable[..., Any])

# Words of a line.
LINKED, DELAY_NS, JITTER_NS, PS_PER_BYTE, LOSS_SHARE, FREE_NS, LAST_NS, HEAD, TAIL = range(9)
LINE_WORDS = 9
LOSS_ONE = 1 << 32
"""What stands for all packets in LOSS_SHARE."""

# Words of the tally, which others read while packets pass.
STOP, PACKETS, BYTES, LOST, FULL, STRAY = range(6)
LATE = 8
LATE_US_MAX = 4_000
"""From `LATE` on: how many packets were so many microseconds late; the last word has all that were later."""
TALLY_WORDS = LATE + LATE_US_MAX + 1

QUEUE_NS_MAX = 50_000_000
"""What finds a longer queue is dropped: a router that buffers more makes everything behind a transfer wait for it."""

PACKET_BYTES = 9_216
POOL_PACKETS = 8_192
_BURST = 32
_IDLE_NS = 100_000_000
_IPV4, _HEADER_BYTES = 4, 20

_read = types.ExternalFunction("read", types.int64(types.int32, types.int64, types.int64))
_write = types.ExternalFunction("write", types.int64(types.int32, types.int64, types.int64))
_ppoll = types.ExternalFunction("ppoll", types.int32(types.int64, types.int64, types.int64, types.int64))
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))


def _jit(function: Function) -> Function:
    return cast(Function, numba.njit(nogil=True, cache=True)(function))


@_jit
def enter(line: Any, now_ns: int, size_bytes: int, chance: float) -> int:
    """Put a packet on a line; returns when it arrives, or -1 where it finds too long a queue."""
    begins_ns = max(now_ns, line[FREE_NS])
    if begins_ns - now_ns > QUEUE_NS_MAX:
        return -1
    line[FREE_NS] = begins_ns + size_bytes * line[PS_PER_BYTE] // 1000
    line[LAST_NS] = max(line[LAST_NS], line[FREE_NS] + line[DELAY_NS] + int(chance * line[JITTER_NS]))
    return int(line[LAST_NS])


@_jit
def _now_ns(clock: Any) -> int:
    _clock_gettime(CLOCK_MONOTONIC, clock.ctypes.data)
    return int(clock[0] * 1_000_000_000 + clock[1])


@_jit
def target(packet: Any, size_bytes: int, nodes: int) -> int:
    """The number of the node that a packet is for; -1 for none of ours."""
    if size_bytes < _HEADER_BYTES or packet[0] >> 4 != _IPV4:
        return -1
    if packet[16] != 10 or packet[17] != 77 or packet[18] != 0:
        return -1
    number = int(packet[19]) - 1
    return number if 0 <= number < nodes else -1


@_jit
def forward(descriptors: Any, lines: Any, pool: Any, tally: Any, seed: int) -> None:
    """Forward until ``tally[STOP]`` is set; a tenth of a second later at most it returns.

    Args:
        descriptors: Of the TUN devices, that do not block; int64.
        lines: `LINE_WORDS` for the line from node i to node j in row i * nodes + j; int64.
        pool: `PACKET_BYTES` for each packet that is under way; uint8.
        tally: `TALLY_WORDS`, counted up; int64.
        seed: Of jitter and loss.
    """
    np.random.seed(seed)
    nodes = len(descriptors)
    polls, clock, wait = np.empty(nodes, np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64)
    for i in range(nodes):
        polls[i] = descriptors[i] | 1 << 32  # struct pollfd: fd, POLLIN; the answer is in the last 16 bits
    after, dues, sizes = np.arange(1, len(pool) + 1), np.zeros(len(pool), np.int64), np.zeros(len(pool), np.int64)
    after[-1] = -1
    free = 0  # the first packet of the chain of those that are not in use
    for one in range(len(lines)):
        lines[one, HEAD] = lines[one, TAIL] = -1
    while tally[STOP] == 0:
        now_ns = _now_ns(clock)
        until_ns = now_ns + _IDLE_NS
        for one in range(len(lines)):
            if lines[one, HEAD] >= 0:
                until_ns = min(until_ns, dues[lines[one, HEAD]])
        wait[0], wait[1] = divmod(max(0, until_ns - now_ns), 1_000_000_000)
        ready = _ppoll(polls.ctypes.data, nodes, wait.ctypes.data, 0)
        for i in range(nodes if ready > 0 else 0):
            for _ in range(_BURST if polls[i] >> 48 else 0):
                if free < 0:
                    break
                size = _read(descriptors[i], pool[free].ctypes.data, PACKET_BYTES)
                if size <= 0:
                    break
                j = target(pool[free], size, nodes)
                if j < 0 or lines[i * nodes + j, LINKED] == 0:
                    tally[STRAY] += 1
                    continue
                line = lines[i * nodes + j]
                due_ns = enter(line, _now_ns(clock), size, np.random.random() if line[JITTER_NS] else 0.0)
                if due_ns < 0:
                    tally[FULL] += 1
                    continue
                if line[LOSS_SHARE] and np.random.random() * LOSS_ONE < line[LOSS_SHARE]:
                    tally[LOST] += 1
                    continue
                packet, free = free, after[free]
                after[packet], dues[packet], sizes[packet] = -1, due_ns, size
                if line[HEAD] < 0:
                    line[HEAD] = packet
                else:
                    after[line[TAIL]] = packet
                line[TAIL] = packet
        now_ns = _now_ns(clock)
        for one in range(len(lines)):
            line = lines[one]
            while line[HEAD] >= 0 and dues[line[HEAD]] <= now_ns:
                packet = line[HEAD]
                _write(descriptors[one % nodes], pool[packet].ctypes.data, sizes[packet])
                tally[PACKETS] += 1
                tally[BYTES] += sizes[packet]
                tally[LATE + min(LATE_US_MAX, (now_ns - dues[packet]) // 1000)] += 1
                line[HEAD], after[packet], free = after[packet], free, packet
                now_ns = _now_ns(clock)
