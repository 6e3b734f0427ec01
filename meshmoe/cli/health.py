"""What ``meshmoe doctor`` looks at. Each look is a function that gives findings; none of them changes anything."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from meshmoe import __version__
from meshmoe.api.error_reading import NoNodeError
from meshmoe.api.socket_path import check_length
from meshmoe.cli.client import NodeClient
from meshmoe.core.errors import ConfigError, MeshmoeError
from meshmoe.core.units import format_size
from meshmoe.node.addresses import lan_addresses
from meshmoe.node.measure import auto_capacity_bytes, auto_threads
from meshmoe.node.places import cache_dir, state_dir
from meshmoe.node.settings import DEFAULT_PORT
from meshmoe.node.status import NodeStatus, PeerStatus

MEMORY_BYTES_MIN = 1 << 30
DISK_BYTES_MIN = 1 << 30
FILES_MIN = 1024
"""A node with 50 peers has some 500 descriptors."""

CONNECT_S_MAX = 1.5
RTT_MS_SLOW = 50.0
_WIDE = ("avx512f", "avx2", "asimd")
_BF16 = ("amx_bf16", "avx512_bf16", "bf16")
_TIME_ERROR = 5
"""What adjtimex(2) returns where nobody keeps the clock right."""


class Finding(msgspec.Struct):
    """One thing that was looked at.

    Attributes:
        what: The thing.
        state: ``ok``; ``note``, worth knowing; ``fail``, to be mended.
        text: How it is.
        advice: What to do; empty if nothing.
    """

    what: str
    state: Literal["ok", "note", "fail"]
    text: str
    advice: str = ""


def box_findings(socket_path: Path, *, ports: bool) -> Iterator[Finding]:
    """Everything that can be seen without a node.

    Args:
        socket_path: Where the node's socket is, or would be.
        ports: Whether to try to listen on the default ports.
    """
    yield _software()
    yield _cpu()
    yield _memory()
    yield from _directories(socket_path)
    yield _files()
    yield _clock()
    yield _network()
    if ports:
        yield _own_ports()


def mesh_findings(socket_path: Path, *, ports: bool) -> Iterator[Finding]:
    """What the node of this box tells of itself and its mesh.

    Args:
        socket_path: The node's socket.
        ports: Whether to connect to every peer's three ports.
    """
    try:
        status = msgspec.json.decode(NodeClient(socket_path).get("/mesh/status"), type=NodeStatus)
    except NoNodeError as error:
        yield Finding("node", "note", str(error).partition(":")[0], "start one with `meshmoe join`")
        return
    except MeshmoeError as error:
        yield Finding("node", "fail", str(error))
        return
    yield _node(status)
    yield from _coverage(status)
    for peer in status.peers:
        if not peer.is_self:
            yield _peer(peer, status, ports=ports)
    yield from _faults(status)


def _software() -> Finding:
    found = {"python": platform.python_version(), "meshmoe": __version__}
    for package in ("torch", "transformers", "numba", "pyzmq"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            return Finding("software", "fail", f"{package} is not installed", "install meshmoe again")
    return Finding("software", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))


def _cpu() -> Finding:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return Finding("cpu", "note", platform.machine(), "its features are not known on this system")
    flags = set(text.split())
    wide = next((flag for flag in _WIDE if flag in flags), None)
    bf16 = next((flag for flag in _BF16 if flag in flags), None)
    words = f"{platform.machine()}, {auto_threads()} compute threads by default, "
    words += f"{wide or 'no wide vectors'}, {bf16 or 'bf16 through float32'}"
    advice = "" if wide else "decoding will be several times slower than on a CPU with AVX2 or NEON"
    return Finding("cpu", "ok" if wide else "note", words, advice)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    words = f"{format_size(memory.available)} available of {format_size(memory.total)}; "
    words += f"experts may take {format_size(auto_capacity_bytes(0))} less the trunk"
    if memory.available < MEMORY_BYTES_MIN:
        return Finding("memory", "fail", words, "stop other programs; torch alone takes 300 MiB")
    return Finding("memory", "ok", words)


def _directories(socket_path: Path) -> Iterator[Finding]:
    try:
        check_length(socket_path)
    except ConfigError as error:
        yield Finding("socket", "fail", str(error))
    for what, path in (("state", state_dir("")), ("cache", cache_dir()), ("socket", socket_path.parent)):
        there = path
        while not there.exists() and there != there.parent:
            there = there.parent
        if not os.access(there, os.W_OK | os.X_OK):
            flag = "--socket" if what == "socket" else "$XDG_STATE_HOME" if what == "state" else "$XDG_CACHE_HOME"
            yield Finding(what, "fail", f"{path} cannot be written", f"mend its owner or mode, or set {flag}")
            continue
        free = shutil.disk_usage(there).free
        short = what == "state" and free < DISK_BYTES_MIN
        words = f"{path}, {format_size(free)} free"
        advice = "fetched weights are kept there: make room, or give --state" if short else ""
        yield Finding(what, "fail" if short else "ok", words, advice)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_MIN:
        return Finding("open files", "fail", f"at most {soft}", f"`ulimit -n {min(hard, 65536)}` before the start")
    return Finding("open files", "ok", f"at most {soft}")


def _clock() -> Finding:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.gmtime().tm_year < 2025:
        return Finding("clock", "fail", now, "set the clock: generations and tokens depend on it")
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(256))
    except (OSError, AttributeError):
        return Finding("clock", "note", now, "whether it is kept right is not known on this system")
    if state == _TIME_ERROR:
        advice = "nobody keeps it right: run an NTP client (chrony, systemd-timesyncd); tokens expire by it"
        return Finding("clock", "note", now, advice)
    return Finding("clock", "ok", f"{now}, kept right by NTP")


def _network() -> Finding:
    addresses = lan_addresses()
    if not addresses:
        return Finding("network", "note", "no address but loopback", "only nodes of this box can join")
    several = "peers are told all of them; --advertise picks one" if len(addresses) > 1 else ""
    return Finding("network", "ok", ", ".join(addresses), several)


def _own_ports() -> Finding:
    taken = []
    for port in range(DEFAULT_PORT, DEFAULT_PORT + 3):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                taken.append(str(port))
    span = f"{DEFAULT_PORT} to {DEFAULT_PORT + 2}"
    if taken:
        return Finding("ports", "note", f"{', '.join(taken)} of {span} in use", "by this box's node, or give --listen")
    return Finding("ports", "ok", f"{span} are free; boxes of the mesh must be able to reach them")


def _node(status: NodeStatus) -> Finding:
    words = f"{status.node} is {status.phase}, up {status.uptime_s:.0f} s"
    if status.software != __version__:
        advice = f"it runs meshmoe {status.software}, this command is {__version__}: restart the node"
        return Finding("node", "note", words, advice)
    if not status.serving.ready:
        return Finding("node", "note", f"{words}, not serving: {status.serving.reason}")
    return Finding("node", "ok", f"{words}, serving")


def _coverage(status: NodeStatus) -> Iterator[Finding]:
    coverage = status.coverage
    if coverage is None:
        return
    words = f"{coverage.covered} of {coverage.total} experts have a holder"
    if coverage.missing_bytes:
        advice = f"the mesh lacks {format_size(coverage.missing_bytes)}: join another box, or give more --capacity"
        yield Finding("experts", "fail", words, advice)
    else:
        yield Finding("experts", "ok" if coverage.covered == coverage.total else "note", words)


def _peer(peer: PeerStatus, status: NodeStatus, *, ports: bool) -> Finding:
    rtt = "" if peer.rtt_ms is None else f", {peer.rtt_ms:.1f} ms"
    words = f"{peer.state} at {peer.address}{rtt}, meshmoe {peer.software or '?'}"
    if peer.state in ("dead", "left"):
        return Finding(peer.node, "note", words, "gone; start it there if it should be here")
    if ports:
        closed = closed_ports(peer.address)
        if closed:
            advice = "open them on that box; every box must reach the three ports of every other"
            return Finding(peer.node, "fail", f"{words}; no way to port {', '.join(map(str, closed))}", advice)
    if peer.state == "suspect":
        return Finding(peer.node, "note", words, "it has not answered lately: busy, asleep, or cut off")
    if peer.software and peer.software != status.software:
        return Finding(peer.node, "note", words, f"this node runs {status.software}: use one version everywhere")
    if peer.rtt_ms is not None and peer.rtt_ms > RTT_MS_SLOW:
        return Finding(peer.node, "note", words, "a slow link: each round waits for it; `--membership wan` suits it")
    return Finding(peer.node, "ok", words)


def closed_ports(address: str) -> list[int]:
    """Which of a node's three ports (control, data, bulk; consecutive by default) cannot be connected to from here.

    A node on free ports has them anywhere, so only the control port is tried for it.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    control = int(port)
    lanes = range(control, control + 3) if control == DEFAULT_PORT else range(control, control + 1)
    closed = []
    for lane in lanes:
        try:
            with socket.create_connection((host, lane), CONNECT_S_MAX):
                pass
        except OSError:
            closed.append(lane)
    return closed


def _faults(status: NodeStatus) -> Iterator[Finding]:
    found = {name: count for name, count in status.faults.items() if count}
    if not found:
        return
    listed = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
    skewed = any("version" in name for name in found)
    advice = "peers of another protocol version call here: upgrade them, or this box" if skewed else ""
    yield Finding("faults", "note", f"since the start: {listed}", advice)
