"""A node whose box has no memory left, in the middle of ten streams elsewhere: none of them shows it."""

import resource
import signal
import subprocess
import sys

import psutil
import pytest
import trio

from meshmoe.cli.local_mesh import NodeFailedError, open_local_mesh
from tests.mesh.conftest import TOKENS
from tests.mesh.failover import start, stream_all
from tests.mesh.memory_limit import HOG, choose_first, memory_group

pytestmark = pytest.mark.mesh

SHARES = {"ant": "80%", "bee": "80%", "dog": "80%"}
"""Every expert has two custodians, one of which may be the victim."""


def started(command):
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def test_the_kernel_kills_a_node_for_memory(tmp_path, expected):
    """Another program of its box takes what was left; of the two, the kernel is told to kill the node."""

    async def main(group):
        async with open_local_mesh(tmp_path) as mesh:
            await start(mesh, SHARES, [], {"dog": group.prefix})
            victim, staying = mesh.nodes["dog"], [mesh.nodes["ant"], mesh.nodes["bee"]]
            choose_first(victim.pid)
            group.leave_bytes(64 << 20)
            hog = None

            async def fault():
                nonlocal hog
                command = [*group.prefix, sys.executable, "-c", HOG.format(mib=256)]
                hog = started(command)
                assert await victim.wait(60) == -signal.SIGKILL

            try:
                streams = await stream_all(staying, TOKENS, fault)
            finally:
                if hog is not None:
                    hog.communicate(timeout=30)
            assert group.killed >= 1
            await mesh.wait_settled("ant", "bee")
            return [stream.tokens for stream in streams]

    with memory_group() as group:
        if group is None:
            pytest.skip("this user may not make a control group for memory")
        assert trio.run(main, group) == expected


def test_a_node_that_gets_no_more_memory(tmp_path, expected):
    """Its own requests are refused, or it ends; streams elsewhere go on, with experts of others in place of its own."""

    async def main():
        async with open_local_mesh(tmp_path) as mesh:
            await start(mesh, SHARES, [])
            victim, staying = mesh.nodes["dog"], [mesh.nodes["ant"], mesh.nodes["bee"]]

            async def fault():
                _, hard = resource.prlimit(victim.pid, resource.RLIMIT_AS)
                taken = psutil.Process(victim.pid).memory_info().vms
                resource.prlimit(victim.pid, resource.RLIMIT_AS, (taken - (64 << 20), hard))

            streams = await stream_all(staying, TOKENS, fault)
            if victim.exit_code is None:
                with pytest.raises(NodeFailedError, match="no memory left"):
                    await victim.complete({"model": "default", "prompt": "a", "max_tokens": 4})
            return [stream.tokens for stream in streams]

    assert trio.run(main) == expected
