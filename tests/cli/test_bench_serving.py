"""``meshmoe bench serve`` and ``mesh`` with real node processes, as small as can be."""

import json
import os
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
import trio
from click.testing import CliRunner

from meshmoe.cli import bench_contest
from meshmoe.cli.bench import bench
from meshmoe.cli.bench_contest import Wanted, open_contestants
from meshmoe.cli.local_mesh import START_TIMEOUT_S, LocalMesh, LocalNode, NodeFailedError
from meshmoe.core.config import parse_topology
from meshmoe.model.tiny import make_tiny_checkpoint
from tests.namespaces import skip_without_namespaces

pytestmark = pytest.mark.mesh

TOPOLOGY = """
[default_link]
rtt = "2ms"
rate = "100Mbit/s"

[nodes.left]
capacity = "60%"
threads = 1

[nodes.right]
capacity = "60%"
threads = 1
"""


@pytest.mark.parametrize("links", ["emulated", "namespaces"])
def test_a_mesh_over_a_topology_files_links(tmp_path, links):
    if links == "namespaces":
        skip_without_namespaces()
    (tmp_path / "pair.toml").write_text(TOPOLOGY)
    make_tiny_checkpoint("qwen3_moe", tmp_path / "tiny")
    asked = ["mesh", "--model", str(tmp_path / "tiny"), "--topology", str(tmp_path / "pair.toml"), "--turns", "1"]
    asked += ["--links", links]
    # Experts of a tiny model with random weights need not find their places for this.
    done = CliRunner().invoke(bench, [*asked, "--adapt", "2", "--streams", "2", "--max-tokens", "6", "--json"])
    assert done.exit_code == 0, done.output
    single, double = json.loads(done.stdout)["figures"]
    assert (single["case"], double["case"]) == ("1 in all", "2 on each node")
    for figure, streams in ((single, 2), (double, 4)):
        assert figure["rtt_ms"] == pytest.approx(2.0)
        load = figure["load"]
        assert load["tokens"] == 6 * streams
        assert load["failed"] == load["refused"] == 0
        # A round cannot be faster than the link that it went over.
        assert load["token_ms"] > 2.0 * load["rounds_per_token"] > 0
    assert ("measured" in done.stderr) == (links == "namespaces")


def test_a_node_that_reads_prompts_beside_its_streams(tmp_path):
    make_tiny_checkpoint("qwen3_moe", tmp_path / "tiny")
    asked = ["serve", "--model", str(tmp_path / "tiny"), "--turns", "1", "--streams", "2", "--max-tokens", "8"]
    done = CliRunner().invoke(bench, [*asked, "--prefill", "40", "--json"])
    assert done.exit_code == 0, done.output
    figure = json.loads(done.stdout)["figures"]["meshmoe"]
    assert figure["tokens"] == 16
    assert figure["beside_p50_ms"] > 0
    assert figure["loop_late_p99_ms"] > 0


@pytest.mark.parametrize("on_every_disk", [False, True])
def test_who_has_the_files_and_how_long_they_may_be_read(tmp_path, monkeypatch, on_every_disk):
    (tmp_path / "pair.toml").write_text(TOPOLOGY)
    (tmp_path / "model.safetensors").touch()
    os.truncate(tmp_path / "model.safetensors", 20_000_000_000)
    topology = parse_topology(TOPOLOGY, "pair.toml")
    seen, words = [], []

    class Mesh:
        nodes: ClassVar = {}

        async def start_topology(self, topology, name, flags, first_flags, settle_s, wires):
            seen.append((flags, first_flags, settle_s))
            return not on_every_disk

    @asynccontextmanager
    async def open_mesh(directory, start_timeout_s):
        seen.append(start_timeout_s)
        yield Mesh()

    async def main():
        wanted = Wanted(tmp_path, "--device cuda", on_every_disk=on_every_disk, settle_s=9)
        async with open_contestants(wanted, topology, "pair.toml", words.append):
            pass

    monkeypatch.setattr(bench_contest, "open_local_mesh", open_mesh)
    trio.run(main)
    files = ["--model", str(tmp_path)]
    every, first = (files, []) if on_every_disk else ([], files)
    assert seen == [START_TIMEOUT_S + 100, (["--device", "cuda", *every], first, 9)]
    assert words[-1] == "meshmoe serves" + (", and experts still move" if on_every_disk else "")


@pytest.mark.parametrize("settle_s", [None, 0.2])
def test_experts_that_still_move_are_told_or_fail(tmp_path, monkeypatch, settle_s):
    async def serving(self, *names):
        pass

    async def moving(self, *names, timeout_s):
        raise NodeFailedError(f"moves after {timeout_s} s")

    async def word(self, name):
        return "127.0.0.1:1"

    monkeypatch.setattr(LocalMesh, "wait_serving", serving)
    monkeypatch.setattr(LocalMesh, "wait_settled", moving)
    monkeypatch.setattr(LocalMesh, "join_word", word)
    monkeypatch.setattr(LocalNode, "start", lambda self, *extra: None)

    async def main():
        topology = parse_topology(TOPOLOGY, "pair.toml")
        return await LocalMesh(tmp_path, 1.0).start_topology(topology, "pair.toml", settle_s=settle_s)

    if settle_s is None:
        with pytest.raises(NodeFailedError, match="moves after None s"):
            trio.run(main)
    else:
        assert trio.run(main) is False
