"""What a node does when its box runs out of something, or its clock jumps (docs/operations.md says what)."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import trio

from meshmoe.api.cause import cause
from meshmoe.cli.local_mesh import NodeFailedError, open_local_mesh
from meshmoe.core.endpoints import Endpoints, Lane
from meshmoe.core.errors import MeshmoeError
from meshmoe.core.ids import NodeId
from meshmoe.core.token import parse_peer
from meshmoe.engine.compute import ComputeError
from meshmoe.model.tiny import make_tiny_checkpoint
from meshmoe.node.node import Node
from meshmoe.node.security import Security
from meshmoe.wire.messages import Hello
from tests.node.support import GREEDY, open_test_mesh, settings, written
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


READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def with_read_only(directory: Path) -> list[str]:
    """What makes a directory one that a command cannot write to, also for root; skips where nothing does."""
    prefix = ["unshare", "--mount", "sh", "-c", READ_ONLY, str(directory)]
    try:
        tried = subprocess.run([*prefix, "touch", str(directory / "x")], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if "Read-only" not in tried.stderr:
        pytest.skip(f"no mount namespaces here: {tried.stderr.strip()}")
    return prefix


@pytest.mark.mesh
def test_a_state_directory_that_cannot_be_written_to(tmp_path, model):
    """At the first start the end, in one line; later a node serves, and says once in a while what it cannot keep."""

    async def main():
        async with open_local_mesh(tmp_path) as mesh:
            node = mesh.add("a", "--model", str(model), "--threads", "1", "--no-discovery")
            state = node.directory / "state"
            state.mkdir(parents=True)
            node.prefix = with_read_only(state)
            node.start()
            assert await node.wait(120) == 2
            assert "the key of this node cannot be kept" in node.last_words()
            assert "Read-only file system: give another directory with --state" in node.last_words()

            node.prefix = []
            node.start()
            await mesh.wait_serving("a")
            key = (state / "node.key").read_bytes()
            asked = {"model": "default", "prompt": "ab", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            tokens = (await node.complete(asked))["choices"][0]["meshmoe"]["token_ids"]
            await node.stop()

            node.prefix = with_read_only(state)
            node.start()
            await mesh.wait_serving("a")
            assert (await node.complete(asked))["choices"][0]["meshmoe"]["token_ids"] == tokens
            log = node.log_path.read_text()
            assert "the custody state cannot be kept" in log and "Read-only file system" in log
            assert "Traceback" not in log
            assert (state / "node.key").read_bytes() == key

    trio.run(main)


@pytest.mark.mesh
def test_other_programs_take_the_memory(tmp_path, model):
    """Requests fail with a reason while the box gives no memory, and the node serves again when it does.

    That the kernel kills the node, or another one of the mesh, instead is in tests/mesh/test_memory.py.
    """

    async def main():
        async with open_local_mesh(tmp_path) as mesh:
            node = mesh.add("a", "--model", str(model), "--threads", "1", "--no-discovery")
            node.start()
            await mesh.wait_serving("a")
            asked = {"model": "default", "prompt": "ab", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            tokens = (await node.complete(asked))["choices"][0]["meshmoe"]["token_ids"]
            _, hard = resource.prlimit(node.pid, resource.RLIMIT_AS)
            taken = psutil.Process(node.pid).memory_info().vms
            resource.prlimit(node.pid, resource.RLIMIT_AS, (taken - (64 << 20), hard))
            words = []
            for _ in range(3):
                with trio.fail_after(30), pytest.raises(NodeFailedError) as refused:
                    await node.complete(asked)
                words.append(str(refused.value))
            assert all("this box has no memory left" in each for each in words), words
            assert node.exit_code is None
            resource.prlimit(node.pid, resource.RLIMIT_AS, (hard, hard))
            with trio.fail_after(30):
                assert (await node.complete(asked))["choices"][0]["meshmoe"]["token_ids"] == tokens

    trio.run(main)


def test_a_node_that_cannot_compute_any_more_ends_and_nobody_waits_for_it(tmp_path, model, monkeypatch):
    """Found by taking its memory: requests hung for ever, and the node went on promising its experts."""

    async def main():
        async with open_test_mesh(tmp_path) as mesh:
            first = await mesh.add("first", model, 1.0)
            second = Node(settings(tmp_path, "second", model, 1.0, peers=(parse_peer(first.join_word()),)))
            ended = []

            async def live():
                try:
                    await second.run()
                except Exception as error:
                    ended.append(cause(error))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(live)
                with trio.fail_after(60):
                    await second.ready.wait()
                engine = second.serving.engine
                await written(second, (1, 2, 3), GREEDY)
                monkeypatch.setattr(engine.compute, "_hub_read_inbox", lambda: 1 / 0)
                with trio.fail_after(20), pytest.raises(MeshmoeError):
                    await written(second, (1, 2, 3), GREEDY)
                with trio.fail_after(20):
                    while not ended:
                        await trio.sleep(0.02)
            assert isinstance(ended[0], ComputeError)
            assert str(ended[0]) == (
                "this node cannot compute any more (ZeroDivisionError: division by zero): start it again"
            )
            assert await written(first, (1, 2, 3), GREEDY)

    trio.run(main)


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
