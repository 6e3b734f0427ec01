"""What a round trip over wires really takes: what the topology file says, and waking up and the kernel besides."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from statistics import median

from meshmoe.bench_engine.wires.netns import inside
from meshmoe.bench_engine.wires.wires import Wires
from meshmoe.core.config import Topology
from meshmoe.core.ids import NodeId
from meshmoe.core.links import LinkShape

_TIMES = 20
_BYTES = 64
_LOST_S = 1.0
_LAST = b"last"


def round_trips(wires: Wires, topology: Topology) -> str:
    """A line for people with all kinds of links: as the file has them, and as they are."""
    found_s: dict[LinkShape, list[float]] = {}
    for (a, b), shape in topology.links.items():
        took_s = round_trip_s(wires, a, b)
        found_s.setdefault(shape, []).extend([] if took_s is None else [took_s])
    parts = [f"{1e3 * shape.rtt_s:g} ms in the file, {_range(took_s)}" for shape, took_s in found_s.items()]
    return f"links, round trip of {_BYTES} bytes: {'; '.join(parts)}"


def _range(took_s: list[float]) -> str:
    if not took_s:
        return "nothing came back"
    least, most = f"{1e3 * min(took_s):.2f}", f"{1e3 * max(took_s):.2f}"
    return f"{least} measured" if least == most else f"{least} to {most} measured"


def round_trip_s(wires: Wires, a: NodeId, b: NodeId, times: int = _TIMES) -> float | None:
    """The median round trip of small datagrams; None if none comes back."""
    took_s = []
    with ExitStack() as stack:
        asking, answering = (stack.enter_context(_bound(wires, name)) for name in (a, b))
        asking.settimeout(_LOST_S)
        there = answering.getsockname()
        echo = threading.Thread(target=_echo, args=(answering,), daemon=True)
        echo.start()
        for _ in range(times):
            began_s = time.perf_counter()
            asking.sendto(bytes(_BYTES), there)
            try:
                asking.recv(_BYTES)
            except TimeoutError:
                continue
            took_s.append(time.perf_counter() - began_s)
        # From its own namespace, where nothing is lost.
        with inside(wires.namespace(b)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as beside:
            beside.sendto(_LAST, there)
        echo.join(_LOST_S)
    return median(took_s) if took_s else None


def _bound(wires: Wires, name: NodeId) -> socket.socket:
    with inside(wires.namespace(name)):
        found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        found.bind((wires.host(name), 0))
    return found


def _echo(answering: socket.socket) -> None:
    while True:
        data, asker = answering.recvfrom(_BYTES)
        if data == _LAST:
            return
        answering.sendto(data, asker)
