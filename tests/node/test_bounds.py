"""What a node does when its box runs out of something, or its clock jumps (docs/operations.md says what)."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.ids import NodeId
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.node.node import Node
from meshmoe.node.security import Security
from meshmoe.wire.messages import Hello
from tests.node.support import open_test_mesh, settings
from tests.node.test_admission import impostor


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_checkpoint("qwen3_moe", tmp_path_factory.mktemp("bounds") / "model")


def join_in_a_process(
    directory: Path, *flags: str, limit: tuple[int, int] | None = None
) -> subprocess.CompletedProcess:
    """Run ``meshmoe join`` with a resource limit; it must fail by itself."""

    def restrain() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(limit[0], (limit[1], limit[1]))

    command = [sys.executable, "-m", "meshmoe.cli.main", "join", "--listen", "127.0.0.1:0", "--threads", "1", *flags]
    environment = {**os.environ, "MESHMOE_SOCKET": str(directory / "s"), "MESHMOE_DEBUG": ""}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment, preexec_fn=restrain
    )


@pytest.mark.mesh
def test_a_full_disk_at_the_first_start_is_one_line(tmp_path, model):
    done = join_in_a_process(
        tmp_path, "--model", str(model), "--state", str(tmp_path / "state"), limit=(resource.RLIMIT_FSIZE, 16)
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "the key of this node cannot be kept" in last and "--state" in last
    assert "Traceback" not in done.stderr


@pytest.mark.mesh
def test_too_few_descriptors_are_one_line(tmp_path, model):
    done = join_in_a_process(tmp_path, "--model", str(model), limit=(resource.RLIMIT_NOFILE, 100))
    assert done.returncode == 2, done.stderr
    assert "may open 100 files only" in done.stderr.splitlines()[-1]


def test_a_disk_that_fills_up_later_costs_a_line_and_not_the_node(tmp_path, caplog, monkeypatch):
    security = Security(NodeId("a"), tmp_path)
    security.begin()
    security.write()
    before = (tmp_path / "mesh.msgpack").read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    security.roll.rotate()
    for _ in range(5):
        security.write()
    assert security.write_failures == 5
    assert caplog.text.count("the roll of the mesh cannot be kept") == 3  # the 1st, 2nd and 4th time
    assert (tmp_path / "mesh.msgpack").read_bytes() == before, "what was there stays whole"


def test_a_clock_that_was_set_back_gives_no_generation_twice(tmp_path, model, monkeypatch):
    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            with trio.fail_after(20):
                while first.custody_file.path.exists() is False:
                    await trio.sleep(0.05)
            return first.generation

    before = trio.run(main)
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)  # 1970
    assert Node(settings(tmp_path, "first", model, 1.0)).generation > before


def test_an_address_that_is_none_does_not_end_the_node(tmp_path, model):
    """Found by reading: a hello with such an address raised in a task of the node, which ended it."""

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            second = await mesh.add("second", model, 1.0)
            second.stop()
            mesh.nodes.remove(second)
            await trio.sleep(0.5)
            for host in ("127.0.0.1;lo", "a b", "..", "/etc", "[::1", "x" * 253):
                async with impostor(first, second.security.keyring.own, "second") as post:
                    hello = Hello(node="second", generation=1 << 60, endpoints=Endpoints(host, 1, 2, 3), software="bad")
                    for _ in range(3):
                        post(Lane.CONTROL, hello)
                        await trio.sleep(0.05)
            assert first.status().serving.ready
            await mesh.add("third", model, 1.0)

    trio.run(main)
