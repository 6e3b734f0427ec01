"""Zero configuration between real processes: multicast DNS, and the token that the mesh asks for.

In a network namespace of its own, whose loopback carries multicast, so that no other mesh of this box is found.
"""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from meshmoe.cli.local_mesh import LocalNode, open_local_mesh
from meshmoe.core.ids import NodeId
from meshmoe.model.tiny import make_tiny_checkpoint

pytestmark = pytest.mark.mesh

ASKED = {"model": "default", "prompt": "ab", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def space() -> Iterator[list[str]]:
    """What puts a command into a namespace with multicast on its loopback."""
    name = f"mmd{os.getpid()}"
    inside = ["ip", "-n", name]
    steps = [
        ["ip", "netns", "add", name],
        [*inside, "link", "set", "lo", "multicast", "on", "up"],
        [*inside, "route", "add", "224.0.0.0/4", "dev", "lo"],
    ]
    try:
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield ["ip", "netns", "exec", name]
    except FileNotFoundError:
        pytest.skip("there is no ip command here")
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


async def said(node: LocalNode, words: str, within_s: float = 120.0) -> None:
    """Wait until the node's log has these words."""
    with trio.fail_after(within_s):
        while words not in node.log_path.read_text():
            await trio.sleep(0.05)


def test_a_mesh_is_found_asks_for_its_token_and_knows_its_members_again(tmp_path: Path, space: list[str]) -> None:
    model = make_tiny_checkpoint("qwen3_moe", tmp_path / "model")

    async def main() -> None:
        async with open_local_mesh(tmp_path) as mesh:
            for name in ("a", "b", "c"):
                mesh.add(name, "--threads", "1", "--discovery").prefix = space
            first, stranger, guest = (mesh.nodes[NodeId(name)] for name in ("a", "b", "c"))
            first.start("--model", str(model))
            word = await mesh.join_word("a")
            await mesh.wait_serving("a")
            tokens = (await first.complete(ASKED))["choices"][0]["meshmoe"]["token_ids"]

            # Nobody can be asked for a token: one line that says what to do.
            stranger.start()
            assert await stranger.wait(120) not in (0, None)
            assert "found a mesh that serves model: a at 127.0.0.1:" in stranger.log_path.read_text()
            assert "admits nobody without a token" in stranger.last_words()

            # Somebody can: a person types it at the terminal, first a wrong one.
            for typed, outcome in (("mm1-nonsense", "is not a join token"), (word, "c serves")):
                keyboard, terminal = pty.openpty()
                try:
                    guest.start(stdin=terminal)
                    await said(guest, "it needs a token")
                    os.write(keyboard, f"{typed}\n".encode())
                    await said(guest, outcome)
                    if typed != word:
                        assert await guest.wait(30) not in (0, None)
                finally:
                    os.close(keyboard)
                    os.close(terminal)
            await mesh.wait_serving("a", "c")
            assert (await guest.complete(ASKED))["choices"][0]["meshmoe"]["token_ids"] == tokens
            members = {peer["node"] for peer in (await first.status())["peers"]}
            assert members == {"a", "c"}

            # A member that comes back needs no token: its key is known.
            await guest.stop()
            guest.start()
            await mesh.wait_serving("a", "c")
            assert (await guest.complete(ASKED))["choices"][0]["meshmoe"]["token_ids"] == tokens

    trio.run(main)
