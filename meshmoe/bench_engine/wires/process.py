"""The process that makes a run's namespaces, forwards their packets, and takes everything away again when it ends.

Started as ``python -m meshmoe.bench_engine.wires.process PLAN``, with a `WiresPlan` as JSON. It says ``up`` once
packets pass, and ends with whoever started it: the kernel sends it a SIGTERM then. Its compiled loop runs in a thread,
so that the main one can wait for that.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import sys
import threading
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np

from meshmoe.bench_engine.wires.forwarding import (
    DELAY_NS,
    JITTER_NS,
    LINE_WORDS,
    LINKED,
    LOSS_ONE,
    LOSS_SHARE,
    PACKET_BYTES,
    POOL_PACKETS,
    PS_PER_BYTE,
    STOP,
    TALLY_WORDS,
    forward,
)
from meshmoe.bench_engine.wires.netns import inside, ip
from meshmoe.bench_engine.wires.plan import UP, WiresPlan
from meshmoe.bench_engine.wires.spaces import host, remove_leftovers, remove_spaces, space_name

MTU_BYTES = 9_000
"""Jumbo frames: a sixth of the packets, and so of what forwarding takes from the processors that are measured."""

_INTERFACE = "mesh0"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
_STOP_S_MAX = 2.0


def lines_of(plan: WiresPlan) -> Any:
    """The table of lines of a plan, both directions of every link; see `forwarding`."""
    lines = np.zeros((plan.nodes * plan.nodes, LINE_WORDS), np.int64)
    for a, b, shape in plan.links:
        for row in (a * plan.nodes + b, b * plan.nodes + a):
            lines[row, LINKED] = 1
            lines[row, DELAY_NS] = round(0.5e9 * shape.rtt_s)
            lines[row, JITTER_NS] = round(1e9 * shape.jitter_s)
            lines[row, PS_PER_BYTE] = round(1e12 / shape.rate_bytes_per_s)
            lines[row, LOSS_SHARE] = round(LOSS_ONE * shape.loss)
    return lines


def open_tun(namespace: str) -> int:
    """Make a TUN device in a namespace; returns its descriptor, with which it goes away."""
    with inside(namespace):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        asked = struct.pack("16sH22x", _INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, asked)
    return descriptor


def _make(owner: int, nodes: int) -> list[int]:
    descriptors = []
    for number in range(nodes):
        name = space_name(owner, number)
        ip("netns", "add", name)
        descriptors.append(open_tun(name))
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "addr", "add", f"{host(number)}/24", "dev", _INTERFACE)
        ip("-n", name, "link", "set", _INTERFACE, "mtu", str(MTU_BYTES), "txqueuelen", "2000", "up")
    return descriptors


def _forward(*arguments: Any) -> None:
    """In a thread of its own, woken to the nanosecond and before others where that is allowed."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    with suppress(PermissionError):  # a link does not wait for a processor, so its emulation should not have to either
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    forward(*arguments)


def run(plan: WiresPlan) -> None:
    """Make, forward until a signal comes, and take away."""
    ended = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, ended)  # they wait for `sigwait`, also while namespaces are made
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    owner = os.getpid()
    try:
        remove_leftovers()
        descriptors = np.array(_make(owner, plan.nodes), np.int64)
        tally = np.memmap(plan.tally_path, np.int64, "w+", shape=(TALLY_WORDS,))
        pool = np.zeros((POOL_PACKETS, PACKET_BYTES), np.uint8)
        arguments = (descriptors, lines_of(plan), pool, tally, plan.seed)
        # Compiled before anybody may send: a call that finds itself stopped returns at once.
        tally[STOP] = 1
        forward(*arguments)
        tally[STOP] = 0
        thread = threading.Thread(target=_forward, args=arguments, daemon=True)
        thread.start()
        sys.stdout.write(f"{UP}\n")
        sys.stdout.flush()
        if os.getppid() == parent:
            signal.sigwait(ended)
        tally[STOP] = 1
        thread.join(_STOP_S_MAX)
    finally:
        remove_spaces(owner)


if __name__ == "__main__":
    run(msgspec.json.decode(sys.argv[1], type=WiresPlan))
