"""Real packets between real namespaces; without root it says that it is skipped."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from meshmoe.bench_engine.wires import netns, spaces
from meshmoe.bench_engine.wires import wires as wires_module
from meshmoe.bench_engine.wires.netns import inside, require_namespaces
from meshmoe.bench_engine.wires.round_trip import round_trip_s, round_trips
from meshmoe.bench_engine.wires.wires import WiresError, open_wires
from meshmoe.core.config import parse_topology
from meshmoe.core.errors import ConfigError
from tests.namespaces import skip_without_namespaces

TOPOLOGY = """
[nodes.left]
[nodes.right]
[nodes.alone]

[[links]]
between = ["left", "right"]
rtt = "10ms"
rate = "80Mbit/s"
"""


@pytest.fixture(scope="module")
def able():
    skip_without_namespaces()


def present():
    return {path.name for path in netns.DIRECTORY.iterdir()}


def transfer_s(wires, size_bytes):
    """How long it takes until all of it has come out at the other end."""
    with inside(wires.namespace("right")):
        listener = socket.create_server((wires.host("right"), 0))
    with inside(wires.namespace("left")):
        sender = socket.socket()
    sender.connect(listener.getsockname())
    receiver, _ = listener.accept()
    with listener, sender, receiver:
        began_s = time.perf_counter()
        thread = threading.Thread(target=sender.sendall, args=(bytes(size_bytes),))
        thread.start()
        got = 0
        while got < size_bytes:
            got += len(receiver.recv(1 << 20))
        thread.join()
        return time.perf_counter() - began_s


def test_delay_rate_who_is_linked_and_that_all_is_gone_afterwards(able):
    topology = parse_topology(TOPOLOGY, "pair.toml")
    with open_wires(topology) as wires:
        assert {wires.namespace(name) for name in topology.nodes} <= present()
        assert 0.010 < round_trip_s(wires, "left", "right") < 0.030
        # 4 MB at 10 MB/s.
        assert 0.4 < transfer_s(wires, 4_000_000) < 1.5
        with inside(wires.namespace("alone")):
            stray = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with stray:
            stray.settimeout(0.2)
            stray.sendto(b"anybody?", (wires.host("left"), 9))
            with pytest.raises(TimeoutError):
                stray.recv(99)
        said = subprocess.run([*wires.prefix("left"), "ip", "addr"], capture_output=True, text=True, check=True).stdout
        assert f"{wires.host('left')}/24" in said
        figures = wires.figures()
        assert figures.packets > 4_000_000 / 9_000
        assert figures.late_p50_us < 4_000
        assert "10 ms in the file, 1" in round_trips(wires, topology)
        owner = wires.owner
    assert not any(name.startswith(f"mmw{owner}-") for name in present())
    with pytest.raises(ProcessLookupError):
        os.kill(owner, 0)


def test_nothing_is_left_where_the_starter_is_killed(able, tmp_path):
    program = f"""
import time
from meshmoe.core.config import parse_topology
from meshmoe.bench_engine.wires.wires import open_wires
with open_wires(parse_topology({TOPOLOGY!r}, "pair.toml")) as wires:
    print(wires.owner, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as starter:
        owner = int(starter.stdout.readline())
        assert f"mmw{owner}-0" in present()
        starter.send_signal(signal.SIGKILL)
    for _ in range(200):
        if not any(name.startswith(f"mmw{owner}-") for name in present()):
            return
        time.sleep(0.05)
    pytest.fail("its namespaces are still there after 10 s")


def test_a_forwarding_process_that_is_killed_is_told_and_leaves_nothing(able):
    with open_wires(parse_topology(TOPOLOGY, "pair.toml")) as wires:
        os.kill(wires.owner, signal.SIGKILL)
        while wires.namespace("left") in present():
            try:
                wires.figures()
            except WiresError as error:
                assert "has ended" in str(error)
                break
            time.sleep(0.01)
        assert wires.namespace("left") in present()
    assert not any(name.startswith(f"mmw{wires.owner}-") for name in present())


def test_why_they_could_not_be_made(able, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no such device >&2\n")
    program.chmod(0o700)
    monkeypatch.setattr(wires_module.sys, "executable", str(program))
    with (
        pytest.raises(WiresError, match="could not be made: no such device"),
        open_wires(parse_topology(TOPOLOGY, "pair.toml")),
    ):
        pass


def test_what_a_killed_process_left_is_removed_and_nothing_else(monkeypatch, tmp_path):
    with subprocess.Popen(["true"]) as done:
        done.wait()
    for name in (f"mmw{done.pid}-0", f"mmw{done.pid}-11", f"mmw{os.getpid()}-0", "mmw1x-0", "lab1"):
        (tmp_path / name).touch()
    calls = []
    monkeypatch.setattr(spaces, "DIRECTORY", tmp_path)
    monkeypatch.setattr(spaces, "ip", lambda *words, check: calls.append(words))
    assert spaces.remove_leftovers() == [f"mmw{done.pid}-0", f"mmw{done.pid}-11"]
    assert calls == [("netns", "del", f"mmw{done.pid}-0"), ("netns", "del", f"mmw{done.pid}-11")]
    spaces.remove_spaces(os.getpid())
    assert calls[2:] == [("netns", "del", f"mmw{os.getpid()}-0")]


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(netns.os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="--links namespaces needs root"):
        require_namespaces("--links namespaces")
    monkeypatch.setattr(netns.os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="needs the command `ip`"):
        require_namespaces("--links namespaces")
    monkeypatch.setattr(netns, "_LIBC", None)
    with pytest.raises(ConfigError, match="needs Linux"):
        require_namespaces("--links namespaces")
