"""Soak test of the real transport: ``python -m tests.transport.soak --minutes 10 --seed 1``.

Five peers on loopback ask, answer and stream, cancel at random, and are restarted at random, for minutes; what must
hold is written in `tests.transport.soak_peer`. Now and then all of it pauses, and tasks, descriptors and memory are
counted at rest: after a warm-up they must not grow. Prints figures and the seed; the exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from dataclasses import dataclass

import psutil
import trio

from meshmoe.core.endpoints import Endpoints
from meshmoe.core.ids import NodeId
from meshmoe.transport.zmq_transport import open_zmq_transport
from tests.transport.soak_peer import REQUEST_DEADLINE_S, SoakPeer
from tests.transport.soak_world import World
from tests.transport.support import free_port

PEERS = [NodeId(name) for name in ("ada", "bob", "cyd", "dee", "eve")]
SAMPLES = 12
WARM_UP_SAMPLES = 4
GROWTH_BYTES_MAX = 32 << 20


@dataclass
class Sample:
    """What the process holds at rest."""

    tasks: int
    descriptors: int
    rss_bytes: int


async def live_and_die(world: World, node: NodeId, chance: random.Random) -> None:
    """One life after the other, each on the same ports; some seconds each, with a pause between."""
    generation = 1
    while True:
        port = world.addresses[node].control_port
        with trio.move_on_after(chance.uniform(4, 25)):
            async with open_zmq_transport(node, generation, "127.0.0.1", port) as transport:
                world.generation[node] = generation
                world.transports[node] = transport
                try:
                    await SoakPeer(world, node, generation, transport, f"{chance.random()}").run()
                finally:
                    del world.generation[node], world.transports[node]
                    world.acquainted.pop(node, None)
        world.counts["restarts"] += 1
        generation += 1
        await trio.sleep(chance.choice([0, 0.1, 1.5]))


async def sample(world: World, peers: trio.Nursery) -> Sample:
    """Pause everything, wait until nothing is under way and all peers are up, and count."""
    world.paused = True
    with trio.move_on_after(REQUEST_DEADLINE_S + 1):
        while world.busy or not world.settled:
            await trio.sleep(0.05)
        await trio.sleep(0.5)
    result = Sample(
        tasks=trio.lowlevel.current_statistics().tasks_living,
        descriptors=psutil.Process().num_fds(),
        rss_bytes=psutil.Process().memory_info().rss,
    )
    world.paused = False
    return result


async def measure_lag(lags_s: list[float]) -> None:
    """How late the loop comes round: it is shared by all five peers, and bounds what can be expected of them."""
    while True:
        start_s = trio.current_time()
        await trio.sleep(0.05)
        lags_s.append(trio.current_time() - start_s - 0.05)


async def soak(duration_s: float, seed: int) -> bool:
    first_port = free_port(3 * len(PEERS))
    ports = range(first_port, first_port + 3 * len(PEERS), 3)
    world = World(
        {node: Endpoints("127.0.0.1", port, port + 1, port + 2) for node, port in zip(PEERS, ports, strict=True)}
    )
    samples: list[Sample] = []
    lags_s: list[float] = []
    start_s = time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure_lag, lags_s)
        for node in PEERS:
            nursery.start_soon(live_and_die, world, node, random.Random(f"{seed}/{node}"))
        for number in range(1, SAMPLES + 1):
            await trio.sleep(max(0.0, start_s + duration_s * number / SAMPLES - time.monotonic()))
            samples.append(await sample(world, nursery))
            print(f"{time.monotonic() - start_s:6.0f} s  {samples[-1]}  {dict(world.counts)}", flush=True)
        nursery.cancel_scope.cancel()
    growth = check_growth(samples, world)
    report(world, growth, lags_s, time.monotonic() - start_s, seed)
    return not world.counts["violations"]


def check_growth(samples: list[Sample], world: World) -> str:
    """Compare the first and the last samples after the warm-up."""
    warm = samples[WARM_UP_SAMPLES:]
    half = len(warm) // 2

    def typical(values: list[Sample], name: str) -> float:
        return statistics.median(getattr(value, name) for value in values)

    parts = []
    for name, allowed in (("tasks", 3), ("descriptors", 8), ("rss_bytes", GROWTH_BYTES_MAX)):
        before, after = typical(warm[:half], name), typical(warm[half:], name)
        parts.append(f"{name} {before:.0f} -> {after:.0f}")
        if after - before > allowed:
            world.violation(f"{name} grew from {before:.0f} to {after:.0f}")
    return ", ".join(parts)


def report(world: World, growth: str, lags_s: list[float], took_s: float, seed: int) -> None:
    """Figures for people."""
    counts = world.counts
    latencies_ms = sorted(latency_s * 1000 for latency_s in world.latencies_s)
    print(f"\nsoak of {took_s:.0f} s, {len(PEERS)} peers in one process, seed {seed}")
    for name in sorted(counts):
        print(f"  {name:22} {counts[name]}")
    if latencies_ms:
        median, late = latencies_ms[len(latencies_ms) // 2], latencies_ms[int(len(latencies_ms) * 0.99)]
        print(f"  latency ms             median {median:.2f}, 99 % {late:.2f}, most {latencies_ms[-1]:.1f}")
    print(f"  loop lag ms            median {statistics.median(lags_s) * 1000:.2f}, most {max(lags_s) * 1000:.1f}")
    print(f"  at rest                {growth}")
    for line in world.violations:
        print(f"  VIOLATION {line}")
    print("FAILED" if counts["violations"] else "passed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    return 0 if trio.run(soak, arguments.minutes * 60, arguments.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
