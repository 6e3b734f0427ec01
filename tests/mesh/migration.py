"""What expert calls pay for weights on the same link: ``python -m tests.mesh.migration [--rate MBIT]...``.

Two real processes and an emulated link. One holds the whole model; the other one starts without a file of it and
streams four texts at once. First it has room for one expert only, so that all its calls go over the link and no weights
move. Then it is started again with room for most of the model: weights come in beside the same calls, as fast as the
node lets them. Prints what calls took in both, and how fast the weights came.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from meshmoe.cli.local_mesh import LocalMesh, LocalNode, open_local_mesh
from meshmoe.model.bench_checkpoint import BenchShape, make_bench_checkpoint

SHAPE = BenchShape(hidden=512, layers=4, experts=24, top_k=4, expert_width=1024)
"""Experts of 3 MiB, 96 of them."""

STREAMS = 4
RTT_MS = 2
MEASURE_S = 10.0
CALLS_MIN = 50
TIMEOUT_S = 110.0
TOPOLOGY = """
default_link = {{ rtt = "{rtt_ms}ms", rate = "{rate}Mbit/s" }}
[nodes.ant]
[nodes.bee]
"""


@dataclass
class Figures:
    """Of one phase."""

    calls: int
    p50_ms: float
    p99_ms: float
    worst_p99_ms: float = 0.0
    took_s: float = 0.0
    received_bytes: int = 0


def figures(status: dict[str, Any]) -> Figures:
    serving = status["serving"]
    return Figures(serving["calls_recent"], serving["call_p50_ms"], serving["call_p99_ms"], serving["call_p99_ms"])


def received(status: dict[str, Any]) -> int:
    return sum(peer["received_bytes"] for peer in status["peers"])


def is_done(status: dict[str, Any]) -> bool:
    """Nothing moves, and what is wanted is here."""
    me = status["peers"][0]
    return not status["custody"]["intakes"] and me["experts_held"] >= status["experts_wanted"] > 0


async def stream_for_ever(node: LocalNode) -> None:
    body = {"model": "default", "prompt": "The", "max_tokens": 2000, "temperature": 0, "ignore_eos": True}
    while True:
        async for _ in node.stream(body):
            pass


async def beside_streams(node: LocalNode, watch: Callable[[], Any]) -> Any:
    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(stream_for_ever, node)
        result = await watch()
        nursery.cancel_scope.cancel()
    return result


async def start_bee(mesh: LocalMesh, flags: list[str], share: str) -> LocalNode:
    """Start the second node (again), and wait until it takes requests."""
    bee = mesh.nodes.get("bee") or mesh.add("bee", *flags)
    await bee.stop()
    bee.start("--capacity", share, "--peer", await mesh.join_word("ant"))
    await bee.wait_status(lambda s: s["serving"]["ready"], "serving")
    return bee


async def while_weights_move(bee: LocalNode) -> Figures:
    """The last ten seconds of it, or all of it, if it takes less; and the worst ten seconds."""
    began, worst_ms, last = trio.current_time(), 0.0, None
    with trio.fail_after(TIMEOUT_S):
        while True:
            status = await bee.status()
            if is_done(status) and last is not None:
                last.took_s, last.worst_p99_ms = trio.current_time() - began, worst_ms
                last.received_bytes = received(status)
                return last
            now = figures(status)
            last = now
            if now.calls >= CALLS_MIN:
                worst_ms = max(worst_ms, now.p99_ms)
            await trio.sleep(0.25)


async def measure(rate_mbit: float, model: Path, directory: Path) -> None:
    topology = directory / "pair.toml"
    topology.write_text(TOPOLOGY.format(rtt_ms=RTT_MS, rate=rate_mbit))
    async with open_local_mesh(directory) as mesh:
        flags = ["--threads", "1", "--links", str(topology)]
        ant = mesh.add("ant", "--model", str(model), "--capacity", "100%", *flags)
        ant.start()
        await mesh.wait_serving("ant")

        async def calm() -> Figures:
            await trio.sleep(MEASURE_S + 2)
            return figures(await bee.status())

        bee = await start_bee(mesh, flags, "3MiB")
        before = await beside_streams(bee, calm)
        bee = await start_bee(mesh, flags, "60%")
        during = await beside_streams(bee, lambda: while_weights_move(bee))
        after = await beside_streams(bee, calm)
        await bee.stop()
        rate = during.received_bytes / during.took_s * 8e-6
        sys.stdout.write(
            f"{rate_mbit:g} Mbit/s: calls before {before.p50_ms:.1f} ms median, {before.p99_ms:.1f} ms 99 % "
            f"({before.calls}); while weights move {during.p50_ms:.1f}, {during.p99_ms:.1f} ({during.calls}), "
            f"worst ten seconds {during.worst_p99_ms:.1f}; after {after.p50_ms:.1f}, {after.p99_ms:.1f}; "
            f"{during.received_bytes / 1e6:.0f} MB in {during.took_s:.1f} s, {rate:.0f} Mbit/s; "
            f"99 % during / before {during.p99_ms / before.p99_ms:.2f}\n"
        )
        sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, action="append", metavar="MBIT", help="of the link; default 100 and 500")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="m") as directory:
        model = make_bench_checkpoint(Path(directory) / "model", SHAPE)
        for rate in arguments.rate or (100.0, 500.0):
            with tempfile.TemporaryDirectory(prefix="m") as run:
                trio.run(measure, rate, model, Path(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
